"""How near an adapter, and a model with one merged in, come to localsteer's own steering, for every concept of the library.

Run as `python -m bench.exports` (part of `make exports`), for all models that there are: LOCALSTEER_REAL_MODEL=FILE adds one of a
size that people use. It writes tables into `docs/export.md` from all that is measured (`bench/exports.json`, kept as it is
measured): what is there already for the same vector and the same way of fitting is not measured again. `--compare-doors` prints
what each of the two places at which an adapter can add does alone.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.models import base_model, demo_model, real_model
from handbook.pages import keep
from localsteer.building.library import loader
from localsteer.concepts.names import shipped_folder
from localsteer.errors import LocalsteerError
from localsteer.export import adapter, adapter_fit, merge, verify
from localsteer.export.adapter import best_rows, write_adapter
from localsteer.export.adapter_fit import fit
from localsteer.export.bake import takes_biases
from localsteer.export.gguf_rewrite import ModelFile, open_model_file, rewrite
from localsteer.export.verify import Fidelity, Reference, predictions, reference
from localsteer.files.atomic import atomic_path
from localsteer.llama.adapter import Adapter
from localsteer.llama.model import Model
from localsteer.llama.residual import Edit
from localsteer.steering.expression import parse_steering
from localsteer.steering.plan import resolve
from localsteer.vector.control_vector import Floats

RECORDS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "export.md"
MARKERS = ("<!-- what `make exports` measured -->", "<!-- end of that -->")
MODELS = {"demo": demo_model, "base": base_model, "real": real_model}
SIGNS = ("", "-")
# Of a model ten times as large as the demo one, where a concept takes minutes.
REAL = ("happy", "french", "pirate", "formal", "confident", "enthusiastic", "simple", "cautious")
# What is to hold.
SHARE, NATS = 0.05, 0.02
# Times the dose: what differs then is rounding, of activations to 8 bits above all. No export can come nearer than that.
NEARLY = 1.001

Records = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.exports", description=__doc__.splitlines()[0])
    parser.add_argument("concepts", nargs="*", help="only these; the tables are written from all that is measured")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="only this one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compare-doors", action="store_true", help="print what each place does alone; nothing is kept")
    options = parser.parse_args()
    shipped = sorted(file.parent.name for file in shipped_folder().glob("*/concept.yaml"))
    records: Records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    try:
        for which in options.model or MODELS:
            path = MODELS[which]()
            if path is None:
                _say("LOCALSTEER_REAL_MODEL names no model, so it is left out")
                continue
            with Model(path, threads=options.threads) as model, open_model_file(path) as file:
                for name in options.concepts or (REAL if which == "real" else shipped):
                    for sign in SIGNS:
                        added = resolve(parse_steering(sign + name), model.fingerprint, loader(model), "prompt").edit.added
                        if options.compare_doors:
                            compare_doors(model, file, f"{which}, {sign}{name}", added)
                        elif _measure(records, which, sign + name, model, file, added):
                            _keep(records)
        if not options.compare_doors:
            _keep(records)
    except LocalsteerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(records: Records, which: str, expression: str, model: Model, file: ModelFile, added: Floats) -> bool:
    """Measure what is not measured already; whether it was."""
    found = records.setdefault(which, {"model": model.path.name, "measured": {}})
    key = _key(added)
    before = found["measured"].get(expression, {})
    if before.get("key") == key and "noise" in before:
        return False
    ours = reference(model, added)
    noise = _numbers(ours.compare(predictions(model, ours.texts, edit=Edit(added * np.float32(NEARLY)))))
    if before.get("key") == key:
        before["noise"] = noise
        return True
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "export.gguf"
        rows = best_rows(model, fit(model, file, added), added, scratch)
        measured = {"key": key, "noise": noise, "adapter": _numbers(adapter_fidelity(model, ours, rows, scratch))}
        if not takes_biases(file, np.flatnonzero(added.any(axis=1)).tolist()):
            rewrite(file, scratch, tensors={}, replaced=merge.merge(file, rows), keys={})
            with Model(scratch, threads=model.threads) as merged:
                measured["merged"] = _numbers(ours.compare(predictions(merged, ours.texts)))
    found["model"], found["measured"][expression] = model.path.name, measured
    _say(f"{which}, {expression}: {measured}")
    return True


def adapter_fidelity(model: Model, ours: Reference, rows: Sequence[adapter_fit.Row], scratch: Path) -> Fidelity:
    """How near an adapter of these rows comes."""
    write_adapter(scratch, model.architecture, "export", rows, {})
    with Adapter(model, scratch) as loaded:
        return ours.compare(predictions(model, ours.texts, adapters=[(loaded, 1.0)]))


def compare_doors(model: Model, file: ModelFile, label: str, added: Floats) -> None:
    """Print what an adapter does that adds behind the feed-forward layers alone, or behind the attention alone."""
    ours = reference(model, added)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "export.gguf"
        for kind in adapter_fit.KINDS:
            rows = best_rows(model, fit(model, file, added, kinds=[kind]), added, scratch)
            found, spread = adapter_fidelity(model, ours, rows, scratch), [row.deviation for row in rows]
            print(f"{label}, {kind} alone: {_cell(_numbers(found))}, a . x +- {min(spread):.2f} to {max(spread):.2f}", flush=True)


def _key(added: Floats) -> str:
    """Of what is added, and of the code that fits and judges it, but for its comments."""
    code = [ast.dump(ast.parse(inspect.getsource(module))) for module in (adapter, adapter_fit, merge, verify)]
    texts = (shipped_folder() / "passages.yaml").read_text(encoding="utf-8")
    return hashlib.sha256("\n".join([*code, texts]).encode() + np.ascontiguousarray(added).tobytes()).hexdigest()[:16]


def _numbers(fidelity: Fidelity) -> dict[str, float]:
    return {
        "mean": round(fidelity.mean, 5),
        "largest": round(fidelity.largest, 4),
        "unsteered": round(fidelity.unsteered_mean, 5),
    }


def _keep(records: Records) -> None:
    """Write the records, and the tables from them."""
    with atomic_path(RECORDS) as temporary:
        temporary.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    keep("".join(tables(records)), PAGE, MARKERS)


def tables(records: Mapping[str, Any]) -> Iterator[str]:
    """One for each model, with what it says in sum."""
    for which in MODELS:
        if which not in records:
            continue
        measured = records[which]["measured"]
        ways = [way for way in ("adapter", "merged") if any(way in one for one in measured.values())]
        yield f"\n**{records[which]['model']}**\n\n"
        for way in ways:
            found = [one[way] for one in measured.values() if way in one]
            shares = [one["mean"] / one["unsteered"] for one in found]
            yield (
                f"- {way}: at most {SHARE:.0%} for {sum(share <= SHARE for share in shares)} of {len(found)} (largest "
                f"{max(shares):.1%}), at most {NATS} nats for {sum(one['mean'] <= NATS for one in found)} (largest "
                f"{max(one['mean'] for one in found):.2g})\n"
            )
        noises = [one["noise"] for one in measured.values() if "noise" in one]
        if noises:
            shares = [one["mean"] / one["unsteered"] for one in noises]
            too_much = sum(share > SHARE for share in shares)
            yield (
                f"- localsteer's own steering at {NEARLY} times the dose, which is rounding alone: {min(shares):.1%} to "
                f"{max(shares):.1%}, more than {SHARE:.0%} for {too_much} of {len(noises)}\n"
            )
            ways.append("noise")
        heads = [f"{way}, at {sign}1" for way in ways for sign in ("", "-")]
        yield f"\n| concept | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|\n"
        for name in sorted({expression.lstrip("-") for expression in measured}):
            cells = [_cell(measured.get(sign + name, {}).get(way)) for way in ways for sign in SIGNS]
            yield f"| {name} | {' | '.join(cells)} |\n"


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.4f} of {found['unsteered']:.2f}: {found['mean'] / found['unsteered']:.1%}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
