"""The card of a folder that people share: a README.md with YAML front matter, as the model hubs read it.

What a vector is, for which model, how it was measured, what it does, how it is used. Texts of models and of other people's
files stand in it as plain text: no markup of theirs is taken for the page's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import yaml

from localsteer.errors import shown
from localsteer.export.adapter import Adapted
from localsteer.llama.fingerprint import Fingerprint
from localsteer.steering.worth import pole_name, worth
from localsteer.vector.calibration import SIGN
from localsteer.vector.control_vector import ControlVector, format_layers

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|])")


@dataclass(frozen=True)
class Sample:
    """Answers to one question.

    Attributes:
        question: what was asked.
        answers: by strength, 0 for the unsteered one.
    """

    question: str
    answers: dict[float, str]


@dataclass(frozen=True, eq=False)
class Contents:
    """What is in a folder.

    Attributes:
        name: of the vector and of its files.
        vector: the vector.
        model: the model that everything was measured on.
        model_file: the name of its file.
        doses: relative dose by strength (1 and -1), of the answer alone and with the prompt; None where it is not known.
        adapter: the adapter; None without one.
        concept: whether there is a concept file.
        samples: questions and answers.
        license: what the hubs call it; None where it was not said.
        base_model: what the hubs call the model; None likewise.
    """

    name: str
    vector: ControlVector
    model: Fingerprint
    model_file: str
    doses: dict[float, tuple[float | None, float | None]]
    adapter: Adapted | None
    concept: bool
    samples: Sequence[Sample]
    license: str | None = None
    base_model: str | None = None

    @property
    def vector_file(self) -> str:
        """The vector's file."""
        return f"{self.name}.gguf"

    @property
    def adapter_file(self) -> str:
        """The adapter's file, if there is one."""
        return f"{self.name}-lora.gguf"


def card(contents: Contents) -> str:
    """The page."""
    parts = (_front_matter, _what, _model, _measured, _samples, _with_localsteer, _with_llama_cpp)
    lines = [line for part in parts for line in (*part(contents), "")]
    return "\n".join([*lines, f"Made by localsteer {version('localsteer')}."]) + "\n"


def _front_matter(contents: Contents) -> Iterator[str]:
    tags = ["localsteer", "steering", "control-vector", "llama.cpp", "gguf", *(["lora"] if contents.adapter is not None else [])]
    keys = {
        **({"license": contents.license} if contents.license is not None else {}),
        **({"base_model": contents.base_model, "base_model_relation": "adapter"} if contents.base_model is not None else {}),
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    yield from ("---", yaml.safe_dump(keys, sort_keys=False).rstrip(), "---")


def _what(contents: Contents) -> Iterator[str]:
    vector, model = contents.vector, contents.model
    positive, negative = (_plain(pole_name(vector, pole)) for pole in ("positive", "negative"))
    yield f"# {_plain(contents.name)}: a volume knob for {_plain(model.name)}"
    yield ""
    if vector.provenance.description:
        yield _plain(vector.provenance.description)
        yield ""
    yield f"A steering vector for a local language model: above 0 its answers go toward *{positive}*, below toward *{negative}*."
    yield "Nothing was trained, and nothing of the model is in here: a direction is added to its hidden states while it answers."
    yield ""
    yield from ("| file | what it is |", "|---|---|")
    yield f"| `{contents.vector_file}` | the control vector, layers {format_layers(vector.layers)}, with what was measured |"
    if contents.adapter is not None:
        yield f"| `{contents.adapter_file}` | the same as a LoRA adapter, for every program that loads one in GGUF |"
    if contents.concept:
        yield "| `concept.yaml` | what it was made from: localsteer builds it anew for any other model |"


def _model(contents: Contents) -> Iterator[str]:
    model = contents.model
    yield from ("## For which model", "")
    yield from ("| | |", "|---|---|", f"| name | {_plain(model.name)} |", f"| architecture | {_plain(model.architecture)} |")
    yield f"| file | {_plain(contents.model_file)} |"
    yield f"| layers, width | {model.n_layer}, {model.n_embd} |"
    yield f"| vocabulary (sha256) | `{model.vocabulary}` |"
    yield f"| its sha256 (of the header and a sample of every tensor) | `{model.content}` |"
    yield ""
    yield "It fits every quantisation of that model; on the one that is named here it was measured."


def _measured(contents: Contents) -> Iterator[str]:
    own = contents.vector.provenance
    yield from ("## How strong, and how that was measured", "")
    yield from ("| strength | relative dose, the answer steered | the prompt as well |", "|---|---|---|")
    for strength, doses in contents.doses.items():
        yield f"| {strength:+g} | {' | '.join('not known' if dose is None else f'{dose:.2f}' for dose in doses)} |"
    yield ""
    yield "A relative dose is the length of what is added over that of the hidden states, summed over the layers."
    yield ""
    if (found := own.calibration) is not None:
        yield (
            f"Calibrated on {_plain(found.model)}: {found.questions} questions that the vector was not made from, "
            f"{found.generated_tokens:,} sampled tokens, budget {found.budget:g} nats a token of coherence, seed {found.seed}."
        )
    elif own.dosing is not None:
        yield (
            f"Dosed on {_plain(own.dosing.model)} by teacher forcing, with {own.dosing.answers} answers of each pole, seed "
            f"{own.dosing.seed}: as strong as its text bears. Not calibrated."
        )
    else:
        yield "Neither dosed nor calibrated: strength 1 is what the file holds."
    told = [f"- {SIGN[pole]:+g}: {_plain(said)}" for pole, said in worth(contents.vector)]
    yield from ("", *told) if told else ()
    adapter = contents.adapter
    if adapter is not None and adapter.fidelity is not None:
        yield ""
        yield (
            f"The adapter predicts what the vector does, up to a mean KL divergence of {adapter.fidelity.mean:.2g} nats over "
            f"{adapter.fidelity.places} positions, where the unsteered model is {adapter.fidelity.unsteered_mean:.2g} away."
        )


def _samples(contents: Contents) -> Iterator[str]:
    if not contents.samples:
        return
    yield from ("## Sample answers", "", "As they came, with the answer steered; none was chosen.")
    for sample in contents.samples:
        yield from ("", f"**{_plain(sample.question)}**", "", "| strength | answer |", "|---|---|")
        for strength, answer in sample.answers.items():
            yield f"| {strength:+g} | {_plain(answer) or '(nothing)'} |" if strength else f"| unsteered | {_plain(answer)} |"


def _with_localsteer(contents: Contents) -> Iterator[str]:
    yield from ("## With localsteer", "", "```")
    if contents.concept:
        yield "localsteer vectors import FOLDER                # this folder: the name works in every expression from then on"
        yield f'localsteer chat -m MODEL -s "0.7 {contents.name}"'
    yield f'localsteer generate "How was your day?" -m MODEL -s {contents.vector_file} --compare'
    yield "```"


def _with_llama_cpp(contents: Contents) -> Iterator[str]:
    yield from ("## With llama.cpp's programs, and others", "")
    if contents.adapter is None:
        yield "They steer the prompt as well, which takes another dose. `localsteer` writes it into a file:"
        yield from ("", "```", f"localsteer export llama-cpp {contents.vector_file} -m MODEL -o llama-cpp.gguf")
        yield from ("llama-server -m MODEL --control-vector llama-cpp.gguf", "```")
        return
    file, opposite = contents.adapter_file, contents.adapter.opposite
    yield from ("```", f"llama-server -m MODEL --lora {file}", f"llama-completion -m MODEL --lora-scaled {file}:0.5 -p ...")
    yield from (f"koboldcpp --model MODEL --lora {file}", "```", "")
    other = f", and {opposite:.2g} that toward the other pole" if opposite is not None else ""
    yield f"They steer the prompt as well: scale 1 is the dose that was measured for that{other}."
    yield 'llama-server takes a scale with every request: `"lora": [{"id": 0, "scale": 0.5}]`.'


def _plain(text: str) -> str:
    """One line of somebody's text, whose markup is only shown."""
    return _MARKUP.sub(r"\\\1", " ".join(shown(line) for line in text.split()))
