"""`logit_bias` as OpenAI's API and llama-server's have it: what is added to the logits of which tokens."""

from __future__ import annotations

import re

from localsteer.llama.model import Model
from localsteer.llama.sampling import RULED_OUT
from localsteer.server.answers import RequestError

_NAME = "logit_bias"
_MAX_BIASES = 10_000
_NUMBER = re.compile("-?[0-9]{1,18}")


def biases_of(model: Model, given: object) -> tuple[tuple[int, float], ...]:
    """The tokens, each with its bias.

    Args:
        model: whose tokens they are.
        given: a mapping from tokens, or a list of pairs that begin with one, to a number or to false, which rules it out. A token
            is a number, also as a text; any other text stands for all its tokens.

    Raises:
        RequestError: it is neither, or one is no token of the model.
    """
    if not given:
        return ()
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list):
        raise RequestError("logit_bias is a mapping from tokens to numbers, or a list of pairs.", _NAME)
    if len(pairs) > _MAX_BIASES:
        raise RequestError(f"{len(pairs)} tokens have a bias, and {_MAX_BIASES} are allowed.", _NAME)
    return tuple((token, bias) for pair in pairs for token, bias in _of_pair(model, pair))


def _of_pair(model: Model, pair: object) -> list[tuple[int, float]]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise RequestError("logit_bias holds pairs of a token and a number.", _NAME)
    token, bias = pair
    if bias is False:
        bias = RULED_OUT
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) <= -RULED_OUT:
        raise RequestError("A bias is a number, or false.", _NAME)
    return [(one, float(bias)) for one in _tokens(model, token)]


def _tokens(model: Model, token: object) -> list[int]:
    if isinstance(token, str) and not _NUMBER.fullmatch(token):
        return model.tokenize(token, add_special=False, special=False)
    if isinstance(token, bool) or not isinstance(token, int | str):
        raise RequestError("A token is a number or a text.", _NAME)
    if not 0 <= (number := int(token)) < model.n_vocab:
        raise RequestError(f"{number} is no token of this model.", _NAME)
    return [number]
