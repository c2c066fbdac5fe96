"""`localsteer policy`: fit a probe, check a policy, try one on texts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from localsteer.commands.options import ModelOptions, Number, gathered, json_option, layers_option, with_model_options
from localsteer.commands.output import note, print_facts, print_json, print_table, progress_bar
from localsteer.errors import PolicyError
from localsteer.files.atomic import atomic_path, check_writable
from localsteer.policy.arm import ArmedPolicy, arm, arm_probe, classifier_name
from localsteer.policy.examples import read_examples
from localsteer.policy.fit import DEFAULT_WINDOW, FitSettings, Fitted, fit_probe
from localsteer.policy.policy_file import load_policy
from localsteer.policy.replay import Replayed, measure_replayed, replay
from localsteer.vector.calibration import Interval
from localsteer.vector.file import check_vector_path, write_vector
from localsteer.vector.probe import Metrics

_FILE = click.Path(dir_okay=False)


@click.group()
def command() -> None:
    """Steering that switches itself on when a classifier says so."""


@command.command()
@click.argument("file", type=_FILE)
@json_option
@with_model_options
def check(file: str, as_json: bool, model_options: ModelOptions) -> None:
    """Validate the policy FILE, and load every vector and model that it names."""
    load_policy(file)  # a mistake in it is told before the model is loaded
    with model_options.open() as model, progress_bar() as progress, arm(file, model, progress) as armed:
        armed.prove()
        name = model.name
    if as_json:
        print_json({"file": file, "model": name, "valid": True, **_described(armed)})
        return
    policy = armed.policy
    print_table(
        ["classifier", "watches", "true from", "false below"],
        [[one.name, one.watch, f"{one.threshold:.3g}", f"{one.release:.3g}"] for one in policy.classifiers.values()],
    )
    print_table(
        ["rule", "when", "steer", "dose", "hold", "ramp", "rewind"],
        [
            [
                rule.name,
                rule.condition.text,
                str(rule.plan.steering),
                "?" if rule.plan.relative_dose is None else f"{rule.plan.relative_dose:.2f}",
                "response" if rule.hold is None else str(rule.hold),
                str(rule.ramp),
                str(rule.rewind),
            ]
            for rule in policy.rules
        ],
    )
    note(*armed.notes)
    click.echo(f"{file} is valid, and works with {name}.")


def _described(armed: ArmedPolicy) -> dict[str, Any]:
    policy = armed.policy
    return {
        "classifiers": {
            one.name: {"watch": one.watch, "threshold": one.threshold, "release": one.release, "layer": one.layer}
            for one in policy.classifiers.values()
        },
        "rules": [
            {
                "name": rule.name,
                "when": rule.condition.text,
                "steer": str(rule.plan.steering),
                "relative_dose": rule.plan.relative_dose,
                "hold": "response" if rule.hold is None else rule.hold,
                "ramp": rule.ramp,
                "rewind": rule.rewind,
            }
            for rule in policy.rules
        ],
        "on_error": policy.on_error,
        "notes": list(armed.notes),
    }


@command.command()
@click.option("--positive", type=_FILE, help="Texts that the probe shall find: one a line, or .jsonl, or .csv.")
@click.option("--negative", type=_FILE, help="Texts that it shall let pass.")
@click.option("--examples", type=_FILE, help="Instead of these two: both kinds in one .jsonl or .csv, with labels.")
@click.option("-o", "--output", required=True, type=_FILE, help="The probe file (.gguf).")
@click.option(
    "--watch",
    type=click.Choice(["prompt", "output"]),
    default="prompt",
    show_default=True,
    help="Whether the texts are users' messages, or answers.",
)
@click.option(
    "--target-fpr",
    "target",
    type=Number(0, 1, min_open=True, max_open=True),
    help="Choose the threshold by the false positives you can live with, such as 0.05.",
)
@click.option("--unseen", type=_FILE, help="Report on these texts (with labels) instead of half of the others.")
@click.option("--save-unseen", type=_FILE, help="Write the texts of the report here (.jsonl), for `policy run`.")
@click.option(
    "--window",
    type=click.IntRange(1, 10**6),
    default=DEFAULT_WINDOW,
    show_default=True,
    help="Tokens of an answer that are averaged.",
)
@layers_option
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the split in two parts.")
@json_option
@with_model_options
@gathered("settings", FitSettings)
def fit(
    positive: str | None,
    negative: str | None,
    examples: str | None,
    output: str,
    unseen: str | None,
    save_unseen: str | None,
    settings: FitSettings,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Fit a probe that tells texts apart by the model's hidden states.

    Half of the texts are kept back for the report; no choice is made on them.
    """
    if (examples is None) == (positive is None and negative is None) or (positive is None) != (negative is None):
        raise click.UsageError("Give --positive and --negative, or --examples.")
    if examples is not None:
        texts = read_examples(examples)
    else:
        assert positive is not None
        assert negative is not None
        texts = [*read_examples(positive, label=True), *read_examples(negative, label=False)]
    others = read_examples(unseen) if unseen is not None else None
    check_vector_path(Path(output), PolicyError)
    if save_unseen is not None:
        check_writable(Path(save_unseen), PolicyError)
    with model_options.open() as model, progress_bar() as progress:
        fitted = fit_probe(model, texts, settings, unseen=others, name=Path(output).stem, on_progress=progress)
    write_vector(fitted.vector, output)
    if save_unseen is not None:
        with atomic_path(Path(save_unseen), PolicyError) as temporary:
            lines = (json.dumps(one.document, ensure_ascii=False) for one in fitted.unseen)
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    _print_fitted(fitted, output, as_json)


def _print_fitted(fitted: Fitted, output: str, as_json: bool) -> None:
    probe = fitted.probe
    if as_json:
        document = {"file": output, **asdict(probe), "chosen": asdict(fitted.chosen), "by_layer": fitted.by_layer}
        print_json({**document, "notes": list(fitted.notes)})
        return
    goal = "both kinds of mistakes alike" if probe.target is None else f"a false positive rate of {probe.target:g}"
    print_facts(
        [
            ("Layer", str(probe.layer)),
            ("Threshold", f"{probe.threshold:.3f}, for {goal} (a typical positive text scores 1, a typical negative one -1)"),
            ("Fitted to", f"{probe.fitted[0]} positive and {probe.fitted[1]} negative texts"),
            ("Reported on", f"{probe.unseen.positives} positive and {probe.unseen.negatives} negative texts that it never saw"),
        ]
    )
    click.echo()
    _print_metrics(probe.unseen)
    note(*fitted.notes)
    name = classifier_name(Path(output))
    click.echo(f"{output} is written. In a policy:  {name}: {{type: probe, vector: {output}, watch: {probe.watch}}}")


def _print_metrics(metrics: Metrics) -> None:
    """The confusion matrix and the rates."""
    print_table(
        ["", "called positive", "called negative"],
        [
            ["positive", str(metrics.true_positives), str(metrics.false_negatives)],
            ["negative", str(metrics.false_positives), str(metrics.true_negatives)],
        ],
    )
    print_facts(
        [
            ("AUROC", _rate(metrics.auroc)),
            ("Precision", _rate(metrics.precision)),
            ("Recall", _rate(metrics.recall)),
            ("F1", _rate(metrics.f1)),
            ("False positive rate", _rate(metrics.false_positive_rate)),
        ]
    )


def _rate(rate: Interval) -> str:
    return "undefined" if rate.mean != rate.mean else f"{rate.mean:.3f}  (95 % interval {rate.low:.3f} to {rate.high:.3f})"


@command.command()
@click.argument("file", type=_FILE)
@click.argument("texts", type=_FILE)
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@json_option
@with_model_options
def run(file: str, texts: str, as_csv: bool, as_json: bool, model_options: ModelOptions) -> None:
    """Try the policy FILE (or a probe) on TEXTS, without generating anything.

    TEXTS has one text a line, or is .jsonl or .csv with the keys text, or prompt and answer. With labels (key label) the
    confusion matrix of every classifier is printed, too.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    examples = read_examples(texts)
    is_probe = file.endswith(".gguf")
    if not is_probe:
        load_policy(file)
    with (
        model_options.open() as model,
        progress_bar() as progress,
        arm_probe(file, model) if is_probe else arm(file, model, progress) as armed,
    ):
        note(*armed.notes)
        results = replay(armed.policy, model, examples, on_progress=lambda done, of: progress("texts", done, of))
        classifiers = armed.policy.classifiers
        measured = {name: measure_replayed(results, one) for name, one in classifiers.items()}
    for name, metrics in measured.items():
        if metrics is None and any(one.example.label is not None for one in results):
            note(f"No confusion matrix of {name}: not every text has a label and a score.")
    if as_json:
        found = {name: asdict(metrics) for name, metrics in measured.items() if metrics is not None}
        print_json({"texts": [_result(one) for one in results], "classifiers": found})
        return
    if as_csv:
        click.echo(_csv(results, list(classifiers)), nl=False, color=True)  # that is: take nothing out of the texts
        return
    print_table(
        ["text", "label", *classifiers, "fires"],
        [
            [
                _shortened(one.example.message or one.example.answer),
                "" if one.example.label is None else str(int(one.example.label)),
                *(_score(one, name) for name in classifiers),
                ", ".join(one.fired),
            ]
            for one in results
        ],
    )
    for name, metrics in measured.items():
        if metrics is not None:
            click.echo(f"{name}, true from {classifiers[name].threshold:.3g}:")
            _print_metrics(metrics)


def _score(result: Replayed, name: str) -> str:
    if name in result.failures:
        return f"failed: {result.failures[name]}"
    return f"{result.scores[name]:.2f}" if name in result.scores else ""


def _result(result: Replayed) -> dict[str, Any]:
    texts = result.example.document
    return {**texts, "scores": result.scores, "fired": list(result.fired), "failures": result.failures}


def _csv(results: Sequence[Replayed], classifiers: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["prompt", "answer", "label", *classifiers, "fired", "failures"])
    for one in results:
        label = "" if one.example.label is None else int(one.example.label)
        scores = [one.scores.get(name, "") for name in classifiers]
        failures = "; ".join(f"{name}: {reason}" for name, reason in one.failures.items())
        writer.writerow([one.example.message, one.example.answer, label, *scores, "; ".join(one.fired), failures])
    return stream.getvalue()


def _shortened(text: str) -> str:
    # A text may hold what makes a terminal do things.
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= 48 else f"{line[:47]}…"
