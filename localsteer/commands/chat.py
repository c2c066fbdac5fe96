"""`localsteer chat`: a conversation in the terminal."""

from __future__ import annotations

import click

from localsteer.chat.conversation import Conversation
from localsteer.chat.terminal import Terminal
from localsteer.commands.answering import (
    AnswerOptions,
    armed_policy,
    limit_for,
    make_opposite,
    make_plan,
    new_controller,
    open_generator,
    policy_for,
    with_answer_options,
)
from localsteer.commands.options import ModelOptions, parse_special_option, with_model_options
from localsteer.commands.output import interrupt_stops_answer, note, print_side_by_side
from localsteer.engine.phases import division_of
from localsteer.engine.request import Request
from localsteer.llama.chat_template import Message
from localsteer.reading.prompt import chat_tokens
from localsteer.steering.expression import Steering
from localsteer.steering.plan import Plan
from localsteer.vector.calibration import Mode


@click.command()
@with_answer_options
@parse_special_option
@with_model_options
def command(answering: AnswerOptions, parse_special: bool, model_options: ModelOptions) -> None:
    """Chat in the terminal, steered. /help lists the commands."""
    with model_options.open(parse_special=parse_special) as opened:
        limit = limit_for(opened, answering.max_dose)

        # Of any conversation: whether the model thinks here is its template's matter.
        hello = chat_tokens(opened, [Message("user", "Hello")], think=answering.think)
        division = division_of(opened, hello)

        def plan_for(steering: Steering, mode: Mode) -> Plan | None:
            plan = make_plan(steering, opened, mode=mode, limit=limit)
            note(*Request(hello, plan, division=division).unheard)
            return plan

        def opposite_for(plan: Plan) -> Plan | None:
            return make_opposite(plan.steering, opened, mode=plan.mode, limit=limit)

        mode: Mode = "anchored" if answering.anchored else "response"
        plan = plan_for(answering.steering, mode)
        with (
            armed_policy(answering.policy_file, opened, limit, mode) as armed,
            open_generator(opened, answering.n_ctx) as generator,
        ):
            conversation = Conversation(
                generator,
                system=answering.system,
                think=answering.think,
                plan=plan,
                controller=new_controller(armed, mode),
                sampling=answering.sampling,
                max_tokens=answering.max_tokens,
                mode=mode,
                opposite_for=opposite_for,
            )
            note(f"{opened.name}. /help lists the commands.")
            if opened.chat_template is None:
                note("A base model without a chat template: the conversation is given to it as plain text.")
            Terminal(
                conversation,
                make_plan=plan_for,
                stoppable=interrupt_stops_answer,
                show_compared=lambda answers: print_side_by_side(
                    [(title, answer.text, answer.timing.seconds) for title, answer in answers]
                ),
                policy_for=None if armed is None else lambda mode: policy_for(armed, mode),
            ).run()
