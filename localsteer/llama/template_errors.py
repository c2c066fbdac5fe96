"""What may be wrong with a chat template."""

from __future__ import annotations

from localsteer.errors import ModelError


class TemplateError(ModelError):
    """A chat template that cannot be used, or not for this conversation."""


class TemplateLimitError(TemplateError):
    """A template that runs too long, or makes too much."""

    def __init__(self, what: str) -> None:
        super().__init__(f"The model's chat template {what}.", hint="It is damaged, or hostile: use another model file.")


class RefusedError(TemplateError):
    """A template that does not take what it is given."""
