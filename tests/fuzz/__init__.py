"""Fuzzing: mutated frames through sockets and through the core, against a second reading of the contract."""
