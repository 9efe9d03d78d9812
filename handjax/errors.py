"""Errors that a user can mend, apart from those that are bugs of handjax."""


class HandjaxError(Exception):
    """Base of the errors that handjax raises with a message meant for the user."""


class UserError(HandjaxError, ValueError):
    """The user gave something that cannot work; the message says what to do."""
