"""The one exception that means: what was handed to the SAE engine was wrong."""


class SAEError(ValueError):
    """Wrong configuration or data. The message is one line: what, where, and what to do."""
