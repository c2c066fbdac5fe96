"""`localsteer generate`: one prompt, answered under steering; with --compare also without and against it."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import datetime
from typing import Any

import click

from localsteer.commands.answering import (
    AnswerOptions,
    armed_policy,
    limit_for,
    make_opposite,
    make_plan,
    new_controller,
    open_generator,
    with_answer_options,
)
from localsteer.commands.options import ModelOptions, json_option, parse_special_option, with_model_options
from localsteer.commands.output import Thoughts, interrupt_stops_answer, note, print_json, print_side_by_side
from localsteer.commands.piped import with_stdin
from localsteer.engine.phases import division_of
from localsteer.engine.reply import parts_of
from localsteer.engine.request import Answer, Request
from localsteer.errors import ModelError
from localsteer.llama.chat_template import Message
from localsteer.llama.template_errors import TemplateError
from localsteer.reading.prompt import chat_stop, latest_message, prompt_tokens
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode

_LOOPED = "An answer repeats itself at its end: --repeat-penalty 1.1 keeps it from that"


def _one_prompt(_context: click.Context, _parameter: click.Parameter, words: tuple[str, ...]) -> str:
    if len(words) > 1:
        more = " ".join(words[1:])
        raise click.UsageError(
            f'What is "{more}"? Put quotes around the whole prompt, and around an expression with spaces, as in -s "0.5 happy".'
        )
    return words[0]


# Eager: a prompt without quotes is told before what is left of an expression without any.
@click.command()
@click.argument("prompt", nargs=-1, required=True, metavar="PROMPT", is_eager=True, callback=_one_prompt)
@with_answer_options
@click.option("--stop", multiple=True, help="End the answer at this text. May be given several times.")
@click.option("--raw", is_flag=True, help="Continue PROMPT as plain text, without the chat template.")
@click.option("--compare", is_flag=True, help="Answer three times: steered the other way, unsteered, steered.")
@click.option(
    "--show-thinking/--hide-thinking",
    default=None,
    help="Whether what a model thinks first is shown before the answer. Default: on a terminal, not in a pipe.",
)
@click.option("--steer-prompt", is_flag=True, help="Steer the prompt as well, as llama.cpp's own programs do.")
@parse_special_option
@json_option
@with_model_options
def command(
    prompt: str,
    answering: AnswerOptions,
    stop: tuple[str, ...],
    raw: bool,
    compare: bool,
    show_thinking: bool | None,
    steer_prompt: bool,
    parse_special: bool,
    as_json: bool,
    model_options: ModelOptions,
) -> None:
    """Answer PROMPT (- reads it from stdin).

    What is piped in stands in front of PROMPT: cat notes.txt | localsteer generate "Sum this up." In a loop that reads a pipe,
    give each call < /dev/null, or the first one takes all that the loop should read.
    """
    steering, policy_file, system = answering.steering, answering.policy_file, answering.system
    if compare and not steering:
        raise click.UsageError("--compare needs something to compare with: give -s.")
    if compare and policy_file is not None:
        raise click.UsageError("--compare shows steerings side by side, and a policy decides by itself: leave one of them out.")
    if raw and system is not None:
        raise click.UsageError("--system has no place in plain text: leave out --raw.")
    if raw and answering.think is not None:
        raise click.UsageError("--think and --no-think are for the chat template: leave out --raw.")
    if answering.anchored and steer_prompt:
        raise click.UsageError("--anchored steers the response alone: leave out --steer-prompt.")
    with model_options.open(parse_special=parse_special) as opened:
        prompt = with_stdin(prompt)
        messages = [Message("system", system)] if system is not None else []
        messages.append(Message("user", prompt))
        now = datetime.now()
        try:
            is_base = opened.chat_template is None
            tokens = prompt_tokens(opened, messages, raw=raw, think=answering.think, now=now)
        except TemplateError as error:
            raise ModelError(error.message, hint="Use --raw to give the prompt as plain text.") from error
        if is_base and not raw:
            note(f"{opened.name} has no chat template (a base model): it continues the prompt as plain text.")
        if not is_base and not raw:
            stop = (*stop, *chat_stop(opened))
        mode: Mode = "anchored" if answering.anchored else "prompt" if steer_prompt else "response"
        limit = limit_for(opened, answering.max_dose)
        plan = make_plan(steering, opened, mode=mode, limit=limit)
        opposite = make_opposite(steering, opened, mode=mode, limit=limit) if compare else None
        name = opened.name
        message = None
        if policy_file is not None:
            message = latest_message(opened, messages, raw=raw, think=answering.think, now=now)
        if plan is None and policy_file is None:
            mode = "response"  # where nothing steers there is nothing to anchor
        division = division_of(opened, tokens) if not raw else None
        request = Request(
            tokens, plan, answering.sampling, answering.max_tokens, stop, message, mode=mode, division=division
        ).seeded()
        note(*request.unheard)
        with (
            armed_policy(policy_file, opened, limit, mode) as armed,
            open_generator(opened, answering.n_ctx) as generator,
            interrupt_stops_answer() as interrupt,
        ):
            controller = new_controller(armed, mode)
            if compare and plan is not None:
                requests = _three_ways(request, opposite)
                answers = {}
                for way, variant in requests.items():
                    if not interrupt():
                        answers[way] = generator.generate(variant, should_stop=interrupt)
                _print_compared(answers, requests, name, as_json)
                return
            gate = controller.answer(prompt, plan) if controller is not None else None
            shown = Thoughts(shown=sys.stdout.isatty() if show_thinking is None else show_thinking)
            answer = generator.generate(
                request,
                gate=gate,
                on_text=None if as_json else shown.answer,
                on_reasoning=None if as_json else shown.think,
                should_stop=interrupt,
            )
    decisions = gate.decisions if gate is not None else []
    if as_json:
        print_json({**_document(answer, request, name), "policy": [decision.document() for decision in decisions]})
    else:
        shown.end()
        note(*(f"[{decision}]" for decision in decisions if decision.action != "pass"))
        note(_footer(answer, request), *_advice({"steered": answer}, {"steered": request}))


def _three_ways(request: Request, opposite: Plan | None) -> dict[str, Request]:
    """The same request, seed and all, under the opposite steering (where there is one), none, and the given one."""
    ways = {"opposite": replace(request, plan=opposite)} if opposite is not None else {}
    return {**ways, "unsteered": replace(request, plan=None, mode="response"), "steered": request}


def _document(answer: Answer, request: Request, model: str) -> dict[str, Any]:
    plan = request.plan
    reasoning, text = parts_of(request.division, answer.text)
    return {
        "text": text,
        **({"reasoning": reasoning} if reasoning else {}),
        "tokens": list(answer.tokens),
        "finish_reason": answer.finish_reason,
        "loops": answer.loops,
        "steering": str(plan.steering) if plan is not None else "",
        "relative_dose": plan.relative_dose if plan is not None else 0.0,
        "worth": list(plan.worth) if plan is not None else [],
        "anchored": request.anchored,
        "model": model,
        "seed": answer.seed,
        "timing": {
            "prompt_tokens": answer.timing.prompt_tokens,
            "reused_tokens": answer.timing.reused_tokens,
            "prompt_tokens_per_second": answer.timing.prompt_tokens_per_second,
            "tokens_per_second": answer.timing.tokens_per_second,
            "seconds": answer.timing.seconds,
        },
        "policy": [],
    }


def _footer(answer: Answer, request: Request) -> str:
    plan = request.plan
    anchored = ", anchored" if request.anchored else ""
    dose = f", relative dose {plan.relative_dose:.2f}" if plan is not None and plan.relative_dose is not None else ""
    if plan is not None and not dose:
        dose = f", steered by {plan.steering}"
    ended = {
        "stop": "",
        "length": ", cut at the limit",
        "interrupted": ", interrupted",
        "policy": ", ended by the policy",
    }[answer.finish_reason]
    return f"[{len(answer.tokens)} tokens at {answer.timing.tokens_per_second:.0f}/s{dose}{anchored}, seed {answer.seed}{ended}]"


def _advice(answers: dict[str, Answer], requests: dict[str, Request]) -> list[str]:
    """What to do about answers that loop."""
    looped = [requests[name].plan for name, answer in answers.items() if answer.loops]
    if not looped:
        return []
    steered = ", and so does less strength; `localsteer calibrate VECTOR --long` finds what long answers bear"
    return [f"{_LOOPED}{steered if any(looped) else ''}."]


def _print_compared(answers: dict[str, Answer], requests: dict[str, Request], model: str, as_json: bool) -> None:
    if as_json:
        documents = {name: _document(answer, requests[name], model) for name, answer in answers.items()}
        print_json({**documents.pop("steered", {}), **documents})
        return
    columns = []
    for name, answer in answers.items():
        plan = requests[name].plan
        columns.append(
            (
                str(plan.steering) if plan is not None else name,
                parts_of(requests[name].division, answer.text)[1],
                answer.timing.seconds,
            )
        )
    print_side_by_side(columns)
    for name in ("opposite", "steered"):
        plan = requests[name].plan if name in answers else None
        if plan is not None:
            dose = f": relative dose {plan.relative_dose:.2f}" if plan.relative_dose is not None else ""
            note(f"{plan.steering}{dose}", *(f"  {said}" for said in plan.worth))
    note(*_advice(answers, requests))
    if answers:
        note(f"[all with seed {next(iter(answers.values())).seed}]")
