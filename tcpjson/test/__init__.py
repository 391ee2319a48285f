"""The unit tests, in memory and on a clock of their own. Run ``trial tcpjson``."""
