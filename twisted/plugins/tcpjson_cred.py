"""What strcred reads to list `scram:` and `token:`: strings only, nothing of tcpjson is imported."""

from typing import Any

from twisted.cred.strcred import ICheckerFactory, InvalidAuthArgumentString
from twisted.plugin import IPlugin
from twisted.python.reflect import namedAny
from zope.interface import implementer


@implementer(ICheckerFactory, IPlugin)
class CheckerFactory:
    """
    Makes a checker from a path, importing it when asked to.

    Args:
        authType: what stands before the path.
        checker: the full name of the class.
        authHelp: for `--help-auth-type`.
    """

    argStringFormat = "The path of the file."

    def __init__(self, authType: str, checker: str, authHelp: str) -> None:
        self.authType = authType
        self.authHelp = authHelp
        self._checker = checker

    @property
    def credentialInterfaces(self) -> Any:
        return namedAny(self._checker).credentialInterfaces

    def generateChecker(self, argstring: str) -> Any:
        """
        The checker of a file.

        Raises:
            InvalidAuthArgumentString: one line that begins with the option.
        """
        if not argstring:
            raise InvalidAuthArgumentString(f"--auth {self.authType}: the path of a file must follow")
        try:
            return namedAny(self._checker)(argstring)
        except ValueError as error:
            raise InvalidAuthArgumentString(f"--auth {self.authType}: {error}") from None


scram = CheckerFactory(
    "scram",
    "tcpjson.auth.VerifierChecker",
    "Passwords, by SCRAM-SHA-256 or plain, against a file of verifiers.\n"
    "python -m tcpjson.passwd FILE USER adds and changes users.",
)
token = CheckerFactory(
    "token",
    "tcpjson.auth.TokenChecker",
    "Tokens against a file of their hashes.\npython -m tcpjson.passwd --token FILE NAME makes a token.",
)
