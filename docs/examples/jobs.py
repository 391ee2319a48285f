"""
A queue of jobs, and workers that do them: twistd -n tcpjson --handlers jobs:router

A worker says `ready` and gets a job, says `done` or `failed`, and `ready` again. What it has for too long, or
leaves undone, goes to another. Nothing is on disk; who goes takes along the jobs that nobody has begun.
"""

from collections import deque
from itertools import count
from typing import Annotated

from msgspec import Meta, Raw

from tcpjson import BadMessage, Forbidden, Message, ProtocolError, Router

LEASE = 60.0  # seconds that a worker has for a job
ATTEMPTS = 3  # for a job
MAX_JOBS = 1000  # that wait
MAX_OF_ONE = 100  # of these, from one client
MAX_PAYLOAD = 64 * 1024  # bytes

Number = Annotated[int, Meta(ge=1, lt=2**53)]


class Submit(Message, tag="submit"):
    payload: Raw


class Ready(Message, tag="ready"):
    pass


class Done(Message, tag="done"):
    job: Number
    result: Raw = Raw(b"null")


class Failed(Message, tag="failed"):
    job: Number
    error: Annotated[str, Meta(max_length=1000)]


class Full(ProtocolError):
    code = "full"
    text = "too many jobs wait"


class Job:
    def __init__(self, number, owner, payload):
        self.number = number
        self.owner = owner
        self.payload = payload
        self.attempts = 0
        self.lease = None  # ends it, while a worker has it


router = Router()
numbers = count(1)
waiting = {}  # deques of jobs by their owners; the one whose turn it is comes first
ready = {}  # workers, who waits longest comes first
begun = {}  # jobs by their workers


def deal():
    """Give jobs to workers, as long as there are both."""
    while waiting and ready:
        worker, owner = next(iter(ready)), next(iter(waiting))
        del ready[worker]
        jobs = waiting.pop(owner)
        job = begun[worker] = jobs.popleft()
        if jobs:
            waiting[owner] = jobs  # behind the others
        job.attempts += 1
        job.lease = worker.server.clock.callLater(LEASE, take_over, worker)
        worker.send({"type": "job", "job": job.number, "payload": job.payload, "attempt": job.attempts})


def take(worker):
    """The job of a worker, which has it no more."""
    job = begun.pop(worker)
    if job.lease.active():
        job.lease.cancel()
    return job


def take_over(worker):
    """Have somebody else do the job of a worker."""
    job = take(worker)
    worker.send({"type": "job_taken", "job": job.number})
    if job.attempts >= ATTEMPTS:
        job.owner.send({"type": "job_failed", "job": job.number, "error": "no worker finished it"})
    elif not job.owner.reason:
        waiting.setdefault(job.owner, deque()).appendleft(job)
        deal()


def finished(worker, number):
    if worker not in begun or begun[worker].number != number:
        raise Forbidden(f"job {number} is not yours, or not any more")
    return take(worker)


@router.handler
def submit(session, message: Submit):
    size = len(message.payload)
    if size > MAX_PAYLOAD:
        raise BadMessage(f"a payload of {size} bytes: {MAX_PAYLOAD} are the most")
    if sum(map(len, waiting.values())) >= MAX_JOBS or len(waiting.get(session, ())) >= MAX_OF_ONE:
        raise Full(retry_after=10)
    # A copy: without it, all that was read with it would be kept.
    job = Job(next(numbers), session, message.payload.copy())
    waiting.setdefault(session, deque()).append(job)
    deal()
    return {"type": "submit_ok", "job": job.number}


@router.handler
def get_ready(session, message: Ready):
    if session.user is not None and not session.user.startswith("worker"):
        raise Forbidden("this is for users whose names begin with worker")
    if session in begun:
        raise Forbidden(f"you have job {begun[session].number}")
    ready[session] = None
    deal()
    return {"type": "ready_ok"}


@router.handler
def done(session, message: Done):
    job = finished(session, message.job)
    job.owner.send({"type": "job_done", "job": job.number, "result": message.result})
    return {"type": "done_ok"}


@router.handler
def failed(session, message: Failed):
    job = finished(session, message.job)
    job.owner.send({"type": "job_failed", "job": job.number, "error": message.error})
    return {"type": "failed_ok"}


@router.on_disconnect
def gone(session):
    ready.pop(session, None)
    waiting.pop(session, None)
    if session in begun:
        take_over(session)
