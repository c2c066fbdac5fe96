"""The measurements, a function each. Within a round the two sides take turns."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.chatting import CHAT_TOKENS, bare_steps, chatting
from bench.measure import Comparison, Section, Series, Target, run_cli, run_process, run_worker
from bench.models import real_model
from bench.serving import knobs, returning, serving
from bench.tools import llama_programs
from localsteer.building.ahead import model_slug
from localsteer.concepts.names import concepts
from localsteer.vector.calibration import POLES

# About the length of a short answer. Both programs start from an almost empty context.
DECODED_TOKENS = 128
# Each side decodes this many times a round and gives its median: one decode (1 s) is too short on a busy machine.
DECODES_A_ROUND = 3
# A decode takes seconds and its ratio scatters by a tenth from round to round on a shared machine: more rounds than the others.
DECODE_ROUNDS = 3
PREFILL_TOKENS = 512
# One whose persona changes the tone, and one whose persona changes all that is said.
DOSED_CONCEPTS = ("happy", "pirate")
# The second is localsteer's default.
MEMORY_CONTEXTS = (2048, 4096)
MEMORY_TOKENS = 64
MEMORY_PROMPT = "<|im_start|>user\nTell me about your day.<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Setting:
    """What all sections share.

    Attributes:
        model: the model file.
        threads: CPU threads of every program.
        repeats: rounds of each section.
        folder: for what the programs write.
        prompts: the positive and the negative prompt file.
        vector: the vector that our own extraction made from them.
    """

    model: Path
    threads: int
    repeats: int
    folder: Path
    prompts: tuple[Path, Path]
    vector: Path

    @property
    def programs(self) -> dict[str, Path]:
        """llama.cpp's programs by name, built at first use."""
        return llama_programs()

    def extract_arguments(self, output: Path) -> list[str]:
        """`localsteer extract` of the prompt files."""
        positive, negative = map(str, self.prompts)
        files = ["--positive", positive, "--negative", negative, "-o", str(output)]
        return ["extract", *files, "--no-dose", "--keep-refusal", "-m", str(self.model), "--threads", str(self.threads)]


def extraction(setting: Setting) -> Section:
    """The same prompt files through both programs, from process start to process end."""
    positive, negative = map(str, setting.prompts)
    generator = [str(setting.programs["llama-cvector-generator"]), "-m", str(setting.model), "--method", "mean"]
    generator += ["--positive-file", positive, "--negative-file", negative]
    generator += ["-o", str(setting.folder / "theirs.gguf"), "-t", str(setting.threads)]
    extract = setting.extract_arguments(setting.folder / "ours.gguf")
    rounds = [(run_cli(*extract).seconds, run_process(generator).seconds) for _ in range(setting.repeats)]
    ours, theirs = (Series(values) for values in zip(*rounds, strict=True))
    return Section(
        "Extracting a vector",
        "The same two prompt files (80 prompts each, 33 tokens a prompt, 4 personas a pole with the same 20 openings), "
        "whole process against whole process: `localsteer extract --no-dose --keep-refusal --positive F --negative F` and "
        "`llama-cvector-generator --method mean`. localsteer reads the last token of each prompt, computes beginnings "
        "that prompts share only once, and measures each layer's reliability besides; llama-cvector-generator runs "
        "each prompt alone and averages over its tokens.",
        (
            Comparison(
                "extraction, whole process",
                "s",
                ours,
                "llama-cvector-generator",
                theirs,
                theirs.over(ours),
                "times faster",
                Target(6.0, at_least=True),
            ),
        ),
    )


def decode(setting: Setting) -> Section:
    """Steered against llama-bench's unsteered decode, and against our own unsteered decode."""
    bench = [str(setting.programs["llama-bench"]), "-m", str(setting.model), "-t", str(setting.threads), "-o", "json"]
    bench += ["-p", "0", "-n", str(DECODED_TOKENS), "-r", str(DECODES_A_ROUND)]
    worker = ["decode", str(setting.model), str(setting.vector), "--threads", str(setting.threads)]
    worker += ["--tokens", str(DECODED_TOKENS), "--repeats", str(DECODES_A_ROUND)]
    rounds = []
    for _ in range(DECODE_ROUNDS * setting.repeats):
        peer = json.loads(run_process(bench).output)[0]["samples_ts"]
        answer = json.loads(run_worker(*worker).output)
        rounds.append(tuple(map(statistics.median, (answer["steered"], answer["unsteered"], answer["sampled"], peer))))
    ours, plain, sampled, theirs = (Series(values) for values in zip(*rounds, strict=True))
    return Section(
        "Steered decoding",
        f"{DECODED_TOKENS} tokens, greedy, from an almost empty context; {DECODE_ROUNDS * setting.repeats} rounds; "
        f"{DECODES_A_ROUND} times a round, of which each side gives its median. Ours is what a user of the Python API gets, with "
        f"choosing the token, detokenising and streaming; llama-bench (`-p 0 -n {DECODED_TOKENS}`) times bare decoding of random "
        "tokens, without any of "
        "that. The last line is the same with the default sampler (temperature 0.7, top-k, top-p, min-p), whose price is "
        "llama.cpp's own.",
        (
            Comparison(
                "steered decode",
                "tokens/s",
                ours,
                "llama-bench, unsteered",
                theirs,
                ours.over(theirs),
                "ours / theirs",
                Target(0.95, at_least=True),
            ),
            Comparison(
                "steered decode",
                "tokens/s",
                ours,
                "localsteer, unsteered",
                plain,
                ours.over(plain),
                "steered / unsteered",
                Target(0.97, at_least=True),
            ),
            Comparison(
                "steered decode, default sampling",
                "tokens/s",
                sampled,
                "llama-bench, unsteered",
                theirs,
                sampled.over(theirs),
                "ours / theirs",
            ),
        ),
    )


def anchored(setting: Setting) -> Section:
    """What it costs to let the unsteered model have a say in every token."""
    worker = ["anchored", str(setting.model), str(setting.vector), "--threads", str(setting.threads)]
    worker += ["--tokens", str(DECODED_TOKENS), "--repeats", str(DECODES_A_ROUND)]
    rounds = []
    for _ in range(setting.repeats):
        answer = json.loads(run_worker(*worker).output)
        rounds.append((statistics.median(answer["anchored"]), statistics.median(answer["free"])))
    ours, free = (Series(values) for values in zip(*rounds, strict=True))
    return Section(
        "Anchored decoding",
        f"{DECODED_TOKENS} tokens, default sampling, steered, with and without `--anchored`; {DECODES_A_ROUND} times a round, of "
        "which each side gives its median. The unsteered model reads every token, too, in the same batch. No target was set.",
        (Comparison("anchored decode", "tokens/s", ours, "not anchored", free, ours.over(free), "anchored / not"),),
    )


def policy(setting: Setting) -> Section:
    """What an armed policy that does not fire costs."""
    worker = ["policy", str(setting.model), str(setting.vector), "--threads", str(setting.threads)]
    worker += ["--tokens", str(DECODED_TOKENS), "--repeats", str(DECODES_A_ROUND)]
    rounds = []
    for _ in range(DECODE_ROUNDS * setting.repeats):
        answer = json.loads(run_worker(*worker).output)
        rounds.append({name: statistics.median(speeds) for name, speeds in answer.items()})

    def row(name: str, what: str, target: float) -> Comparison:
        armed, plain = (Series(tuple(one[key] for one in rounds)) for key in (name, "none"))
        ratio = armed.over(plain)
        return Comparison(what, "tokens/s", armed, "no policy", plain, ratio, "armed / none", Target(target, at_least=True))

    return Section(
        "An armed policy that does not fire",
        f"{DECODED_TOKENS} tokens, greedy, with and without a policy whose classifiers see nothing; "
        f"{DECODE_ROUNDS * setting.repeats} rounds; {DECODES_A_ROUND} times a round, of which each side gives its median. The "
        "rules are 8 words and 2 patterns. A probe needs llama.cpp's evaluation callback, whose price is the same half a "
        "millisecond a token for every model; a context that was once given one keeps it.",
        (
            row("rules", "decode, rules on the output", 0.98),
            row("prompt probe", "decode, probe on the prompt", 0.90),
            row("output probe", "decode, probe on the output", 0.90),
        ),
    )


def memory(setting: Setting) -> Section:
    """Peak resident memory of one steered answer."""
    return Section(
        "Memory",
        f"Peak resident memory of the whole process for a steered answer of up to {MEMORY_TOKENS} tokens: `localsteer "
        "generate` and `llama-completion --control-vector-scaled`, the same vector, prompt and context length. Pages "
        "of the model file that the process mapped and touched count on both sides. Python and its libraries weigh the "
        "same whatever the model, so a small model, as here, is the hard case.",
        tuple(_peak_memory(setting, n_ctx) for n_ctx in MEMORY_CONTEXTS),
    )


def _peak_memory(setting: Setting, n_ctx: int) -> Comparison:
    shared = ["-m", str(setting.model), "-n", str(MEMORY_TOKENS), "--threads", str(setting.threads)]
    ours = ["generate", MEMORY_PROMPT, "--raw", "-s", str(setting.vector), "--temperature", "0", "--json", *shared]
    ours += ["--context", str(n_ctx)]
    theirs = [str(setting.programs["llama-completion"]), "-p", MEMORY_PROMPT, "-no-cnv", "--temp", "0", *shared]
    theirs += ["--control-vector-scaled", f"{setting.vector}:1", "-c", str(n_ctx)]
    rounds = [(run_cli(*ours).peak_mib, run_process(theirs).peak_mib) for _ in range(setting.repeats)]
    left, right = (Series(values) for values in zip(*rounds, strict=True))
    what, ratio = f"peak memory, context of {n_ctx:,} tokens", left.over(right)
    target = Target(1.25, at_least=False)
    return Comparison(what, "MiB", left, "llama-completion", right, ratio, "ours / theirs", target)


def tap(setting: Setting) -> Section:
    """What it costs to read the residual stream while the model runs."""
    worker = ["tap", str(setting.model), "--threads", str(setting.threads)]
    worker += ["--tokens", str(PREFILL_TOKENS), "--repeats", str(setting.repeats)]
    answer = json.loads(run_worker(*worker).output)

    def row(what: str, kind: str) -> Comparison:
        read, plain = Series(tuple(answer[kind]["read"])), Series(tuple(answer[kind]["plain"]))
        return Comparison(what, "ms", read, "the same, nothing read", plain, read.over(plain), "read / not read")

    return Section(
        "Reading the residual stream",
        "The cost of a ResidualTap against a context without one. Both sides are ours; no target was set.",
        (
            row(f"prefill of {PREFILL_TOKENS} tokens, all layers read", "prefill"),
            row("one decoded token, one layer read", "decode"),
        ),
    )


def dosing(setting: Setting) -> Section:
    """What it costs to measure a fresh vector's dose, and how far two seeds agree."""
    models = {"demo": (setting.model, 8.0)}
    if (real := real_model()) is not None:
        models[real.name] = (real, 40.0)
    comparisons = []
    for label, (model, limit) in models.items():
        worker = ["dosing", str(model), "--threads", str(setting.threads), "--repeats", str(setting.repeats)]
        for name in DOSED_CONCEPTS:
            found = {
                key: Series(tuple(values)) for key, values in json.loads(run_worker(*worker, "--concept", name).output).items()
            }
            seconds, answering, one = found["dosing"], found["personas"], Series((1.0,) * setting.repeats)
            target = Target(limit, at_least=False)
            comparisons.append(
                Comparison(f"{name}, {label}", "s", seconds, "the personas' answers", answering, seconds.over(one), "s", target)
            )
            for pole in POLES:
                middle = Series((statistics.median(found[pole].values),) * setting.repeats)
                what = f"{name}, {label}: dose toward {pole}, a seed each"
                comparisons.append(
                    Comparison(what, "relative dose", found[pole], "their median", middle, found[pole].over(middle), "")
                )
    return Section(
        "Dosing a fresh vector",
        "What `extract` and the first use of a name do to find out what strength 1 is, after the personas' answers are there; "
        "these, with all else that does not depend on the vector (how likely the model finds them and begins a refusal, "
        "unsteered); and the doses, each time with another seed.",
        tuple(comparisons),
    )


def calibration(setting: Setting) -> Section:
    """What a calibration costs after the dosing, how far two seeds agree, and how sure its effect is."""
    models = {"demo": (setting.model, 60.0)}
    if (real := real_model()) is not None:
        models[real.name] = (real, 300.0)
    comparisons, widths = [], []
    for label, (model, limit) in models.items():
        worker = ["calibration", str(model), "--threads", str(setting.threads), "--repeats", "2"]
        for name in DOSED_CONCEPTS:
            found = json.loads(run_worker(*worker, "--concept", name).output)
            seconds, dosing, one = Series(tuple(found["seconds"])), Series(tuple(found["dosing"])), Series((1.0, 1.0))
            target = Target(limit, at_least=False)
            comparisons.append(Comparison(f"{name}, {label}", "s", seconds, "its dosing", dosing, seconds.over(one), "s", target))
            for pole in POLES:
                first, second = (Series((value,)) for value in found[pole])
                what = f"{name}, {label}: dose toward {pole}"
                comparisons.append(Comparison(what, "relative dose", first, "another seed", second, first.over(second), ""))
            widths.append(f"{name}, {label}: {', '.join(f'{width:.2f}' for width in found['width'])}")
    return Section(
        "Calibrating a vector",
        "After it was dosed, with `--by-cost` and two seeds. Width of the 95 % interval of the effect at strength 1 and -1, "
        f"as a share of the effect: {'; '.join(widths)}.",
        tuple(comparisons),
    )


def library(setting: Setting) -> Section:
    """The first and the second use of a concept's name."""
    shared = ["-m", str(setting.model), "--threads", str(setting.threads)]
    answer = ["generate", "Hello.", "-n", "1", "--json", *shared]
    rounds: dict[str, tuple[float, float, float]] = {}
    for name in [concept.name for concept in concepts().values() if concept.shipped]:
        built = run_cli("vectors", "build", name, "-o", str(setting.folder / "built"), *shared)
        expression = f"1 {setting.folder / 'built' / name / model_slug(setting.model)}.gguf"
        rounds[name] = (built.seconds, run_cli(*answer, "-s", expression).seconds, run_cli(*answer).seconds)
    first, second, plain = (Series(values) for values in zip(*rounds.values(), strict=True))
    return Section(
        "A concept of the library, by name",
        f"All {len(rounds)} concepts, once each, whole processes: `localsteer vectors build NAME` (what the first use of a "
        "name does, without calibration), then a one-token answer with the vector that is there, and one without steering. "
        f"Slowest to build: {max(rounds, key=lambda name: rounds[name])}.",
        (
            Comparison("second use", "s", second, "no steering", plain, second.over(plain), "steered / unsteered"),
            Comparison("building", "s", first, "its second use", second, first.over(second), "first / second"),
        ),
    )


def serve(setting: Setting) -> Section:
    """Our server beside llama-server."""
    return serving(setting.model, setting.threads, setting.repeats, llama_programs(("llama-server",))["llama-server"])


def going_back(setting: Setting) -> Section:
    """Going back to an earlier conversation, on our server and on llama-server."""
    return returning(setting.model, setting.threads, llama_programs(("llama-server",))["llama-server"])


def volume_knobs(setting: Setting) -> Section:
    """llama-server with adapters of ours."""
    models: dict[str, tuple[Path, float | None]] = {"demo": (setting.model, None)}
    if (real := real_model()) is not None:
        models[real.name] = (real, 0.95)
    return knobs(models, setting.threads, setting.repeats, llama_programs(("llama-server",))["llama-server"])


def chat(setting: Setting) -> Section:
    """What the chat's drawing costs, and three answers side by side."""
    models = {"demo": setting.model}
    if (real := real_model()) is not None:
        models[real.name] = real
    comparisons = []
    for label, model in models.items():
        rounds = chatting(model, setting.threads, setting.repeats, setting.folder)
        talked, generated, compared = (Series(values) for values in zip(*rounds, strict=True))
        comparisons += [
            Comparison(
                f"time between tokens in the chat, {label}",
                "ms",
                talked,
                "localsteer generate",
                generated,
                talked.over(generated),
                "chat / generate",
                Target(1.03, at_least=False),
            ),
            Comparison(
                f"/compare: time between steps of three answers, {label}",
                "ms",
                compared,
                "one answer",
                talked,
                compared.over(talked),
                "three / one",
                Target(1.6, at_least=False),
            ),
        ]
        one, three = (Series(values) for values in zip(*bare_steps(model, setting.threads, setting.repeats), strict=True))
        what = f"of which llama.cpp alone: a decode of three sequences, {label}"
        comparisons.append(Comparison(what, "ms", three, "of one", one, three.over(one), "three / one"))
    return Section(
        "The chat",
        f"Up to {CHAT_TOKENS} tokens of one steered answer, in `localsteer chat` and by `localsteer generate`, each in a "
        "terminal that is read; then the three answers of `/compare` to the same question, in one batch. Time from the first "
        "token to the last, for a token of the longest answer. Three at once can take no less than llama.cpp itself needs for a "
        "token of each of three sequences, where nothing is steered, sampled or drawn.",
        tuple(comparisons),
    )


SECTIONS: dict[str, Callable[[Setting], Section]] = {
    "extraction": extraction,
    "decode": decode,
    "anchored": anchored,
    "policy": policy,
    "memory": memory,
    "tap": tap,
    "library": library,
    "serving": serve,
    "going back": going_back,
    "knobs": volume_knobs,
    "dosing": dosing,
    "calibration": calibration,
    "chat": chat,
}
