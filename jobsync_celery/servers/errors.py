"""What can go wrong with a private server."""


class ServerError(Exception):
    """A private server could not be started, or ended by itself."""


class ServerMissing(ServerError):
    """This machine has no program for such a server; the message says what to install."""
