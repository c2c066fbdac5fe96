"""Does an exported file do what our own steering does? Both predict the next token at the same places, and are compared.

The measure is the Kullback-Leibler divergence of next-token distributions, KL(ours || exported) in nats; the divergence of the
unsteered model from ours stands beside it, to show how much there is to lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localsteer.errors import ExportError
from localsteer.llama.adapter import Adapter
from localsteer.llama.chat_template import Message
from localsteer.llama.context import Batch, Context
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit, ResidualTap
from localsteer.llama.steerability import steerability
from localsteer.vector.control_vector import Floats

# Places in each exchange: with twenty exchanges 400 in all.
PLACES = 20
# Of each of our predictions so many of the likeliest tokens are kept, and all others as one: rows of 256,000 would be 400 MB. On
# Gemma 3 270M happy is 0.0961 nats away so, and 0.0968 by all of them.
_KEPT = 4096

# Everyday exchanges, a question and its answer in turn; every answer is longer than 20 tokens in any vocabulary.
_EXCHANGES = """\
How was your day?
It began with rain, and by noon the sun was out, so I walked home along the river and met two old friends.
What is a good breakfast?
Oats with fruit and a little honey keep you going until lunch, and they take only five minutes to make.
Tell me about your town.
It lies between two hills, has one long street with small shops, and on Saturdays a market that everybody visits.
Why do leaves fall in autumn?
Days grow short, so the tree takes back what it can use from each leaf and then lets go of it.
Can you help me move?
I have time on Sunday after ten, and my brother could bring his van if you tell him early enough.
What did you read last?
A novel about three sisters who run a lighthouse, with more weather in it than plot, but I liked the ending.
How does a kettle work?
Current flows through a coil in the base, the coil gets hot, and a switch cuts it off once the steam reaches it.
Is it worth learning to cook?
Yes, because you save money, you know what is in your food, and people come to visit you more often.
What should I do about my neighbour?
Talk to him first, on a quiet evening, and tell him what you hear and when, before you write any letter.
Describe the sea.
Grey in the morning and green at noon, it never keeps still, and at night you hear it long before you see it.
How do I keep a plant alive?
Put it where it gets light but no hot sun, and water it only when the top of the soil feels dry to your finger.
What makes a good teacher?
One who asks more than he tells, who waits for an answer, and who remembers what it was like not to know.
I have a job interview tomorrow.
Then lay out your clothes tonight, read again what the firm does, and think of two questions that you would like to ask.
Why is the sky blue?
Air scatters short waves of light more than long ones, so blue reaches your eye from all sides and red mostly from the sun.
Tell me something about bees.
A bee that has found flowers dances on the comb, and the angle of her dance tells the others which way to fly.
Should I buy a used car?
Have a mechanic look at it first, ask for the papers of every repair, and drive it on a fast road before you decide.
How can I sleep better?
Go to bed at the same hour every night, keep the room cool and dark, and leave your telephone in the kitchen.
What was here a hundred years ago?
Fields for the most part, a mill by the stream, and a single road on which carts brought milk to the station.
My train is late again.
That is annoying when you have to change, but the next one runs in twenty minutes and is rarely full at this hour.
What is a computer program?
A list of steps in a language that a machine can follow, from adding two numbers to drawing a whole landscape.
"""

# Mean divergence up to which an export passes whatever the unsteered model does. Two ways to compute the same steering differ by
# nothing (control vector and callback) or 0.003 (baked: float32 rounding at another place, through 8-bit activations) on SmolLM2
# Q4_1, where the unsteered model differs by 0.22 at strength 1 and by 0.05 at half of it.
NOISE = 0.02
# And beyond that, the share of the unsteered model's divergence: an export at the wrong layer, of the wrong sign or of twice the
# strength is off by half of it or more.
SHARE = 0.1


@dataclass(frozen=True)
class Fidelity:
    """How far an export is from our own steering, in nats, over a number of places.

    Attributes:
        places: how many next-token distributions were compared.
        mean: mean KL(ours || exported).
        largest: the largest one.
        unsteered_mean: mean KL(ours || unsteered).
        unsteered_largest: the largest one.
    """

    places: int
    mean: float
    largest: float
    unsteered_mean: float
    unsteered_largest: float

    def bound(self, noise: float = NOISE) -> float:
        """The mean divergence up to which the export counts as the same steering."""
        return max(noise, SHARE * self.unsteered_mean)

    def refuse_if_far(
        self, noise: float = NOISE, hint: str = "`localsteer doctor -m MODEL` says which way of steering the model allows."
    ) -> None:
        """Make sure that the export steers as we do.

        Args:
            noise: the divergence that says nothing, nats.
            hint: what to do next.

        Raises:
            ExportError: it does not.
        """
        if not self.mean <= self.bound(noise):  # NaN is far, too
            raise ExportError(
                f"The exported file does not steer as localsteer does: mean KL divergence {self.mean:.4f} nats over "
                f"{self.places} positions, at most {self.bound(noise):.4f} allowed, {self.unsteered_mean:.4f} without steering. "
                "No file was written.",
                hint=hint,
            )


@dataclass(frozen=True, eq=False)
class Reference:
    """What our own steering and the unsteered model predict.

    Attributes:
        texts: the token sequences.
        steered: for each place the tokens (n,) that are likeliest under our steering, and their log probabilities (n,).
        unsteered: (n_places,) divergence of the unsteered model from it, nats.
    """

    texts: tuple[tuple[int, ...], ...]
    steered: tuple[tuple[NDArray[np.intp], Floats], ...]
    unsteered: NDArray[np.float64]

    def compare(self, exported: Iterable[Floats]) -> Fidelity:
        """How far the log probabilities (n_vocab,) that an exported file gives at each place are from ours."""
        theirs, none = divergences(self.steered, exported), self.unsteered
        return Fidelity(len(theirs), float(theirs.mean()), float(theirs.max()), float(none.mean()), float(none.max()))


def reference(model: Model, added: Floats, texts: Sequence[Sequence[int]] | None = None) -> Reference:
    """What our own steering of prompt and answer predicts.

    The steering goes through the evaluation callback, not through llama.cpp's control vector, which is what an export uses: so a
    mistake in either shows.

    Args:
        model: the model.
        added: (n_layer, n_embd), residual-stream units.
        texts: token sequences; None takes twenty everyday exchanges.

    Raises:
        ExportError: the model's residual stream cannot be rewritten, so there is nothing to compare with.
    """
    if not steerability(model).readable:
        raise ExportError(
            f"An export for {model.name} (architecture {model.architecture}) cannot be verified: {steerability(model).reason}.",
            hint="--no-verify writes the file without that.",
        )
    chosen = tuple(tuple(text) for text in (texts if texts is not None else exchanges(model)))
    steered = tuple(_likeliest(row) for row in predictions(model, chosen, edit=Edit(added)))
    return Reference(chosen, steered, divergences(steered, predictions(model, chosen)))


def exchanges(model: Model) -> tuple[tuple[int, ...], ...]:
    """Twenty everyday questions with answers, as this model reads them."""
    lines = _EXCHANGES.splitlines()
    texts = []
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
        if model.chat_template is None:
            texts.append(f"{question}\n\n{answer}")
        else:
            texts.append(model.chat_template.render([Message("user", question)]) + answer)
    return tuple(tuple(model.tokenize(text)) for text in texts)


def predictions(
    model: Model,
    texts: Sequence[Sequence[int]],
    *,
    edit: Edit | None = None,
    control_vector: Floats | None = None,
    adapters: Sequence[tuple[Adapter, float]] = (),
) -> Iterator[Floats]:
    """What a model predicts behind each of the last 20 tokens of some texts.

    Args:
        model: the model.
        texts: token sequences.
        edit: rewrites the residual stream of every token.
        control_vector: (n_layer, n_embd), given to llama.cpp as its own control vector.
        adapters: LoRA adapters, each with its scale.

    Yields:
        (n_vocab,) log probabilities, place after place.
    """
    tap = ResidualTap(model.n_layer, model.n_embd) if edit is not None else None
    longest = max(len(text) for text in texts)
    with Context(model, n_ctx=longest, n_ubatch=longest, n_outputs=PLACES, tap=tap) as context:
        context.set_control_vector(control_vector)
        context.set_adapters(adapters)
        for text in texts:
            context.clear()
            batch = Batch.of_one_sequence(text, start=0)
            batch.outputs[-PLACES:] = 1
            if tap is not None:
                tap.edit([edit] * len(text))
            context.decode(batch)
            for row in np.flatnonzero(batch.outputs):
                yield _log_softmax(context.logits(int(row)))


def divergences(ours: Iterable[tuple[NDArray[np.intp], Floats]], theirs: Iterable[Floats]) -> NDArray[np.float64]:
    """KL(ours || theirs) in nats at each place, all tokens but our likeliest taken as one.

    Args:
        ours: by place, tokens (n,) and their log probabilities (n,).
        theirs: by place, log probabilities of all tokens, (n_vocab,).
    """
    found = []
    for (tokens, ours_here), row in zip(ours, theirs, strict=True):
        one, other = ours_here.astype(np.float64), row[tokens].astype(np.float64)
        if len(tokens) < len(row):
            one, other = (np.append(logs, _log_rest(logs)) for logs in (one, other))
        found.append((np.exp(one) * (one - other)).sum())
    return np.maximum(found, 0.0)  # float32 rounding leaves -1e-9 where both are the same


def _log_rest(logs: NDArray[np.float64]) -> float:
    """Log probability of all tokens but those with these."""
    return float(np.log(max(1 - np.exp(logs).sum(), np.finfo(np.float32).eps)))


def _likeliest(row: Floats) -> tuple[NDArray[np.intp], Floats]:
    """The likeliest tokens (n,) by their log probabilities (n_vocab,), and these (n,)."""
    kept = np.argpartition(row, -_KEPT)[-_KEPT:] if len(row) > _KEPT else np.arange(len(row), dtype=np.intp)
    return kept, row[kept]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    logs: Floats = shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    return logs
