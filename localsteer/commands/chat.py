"""`localsteer chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localsteer.commands.options import (
    ModelOptions,
    anchored_option,
    armed_policy,
    context_option,
    limit_for,
    make_opposite,
    make_plan,
    max_dose_option,
    new_controller,
    open_generator,
    policy_for,
    policy_option,
    steer_option,
    with_model_options,
    with_sampling_options,
)
from localsteer.commands.output import interrupt_stops_answer, note, print_side_by_side

if TYPE_CHECKING:
    from localsteer.llama.sampling import Sampling
    from localsteer.steering.expression import Steering
    from localsteer.steering.plan import Plan
    from localsteer.vector.calibration import Mode


@click.command()
@steer_option
@policy_option
@click.option("--system", help="A system message.")
@click.option("-n", "--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer.")
@anchored_option
@max_dose_option
@with_sampling_options
@context_option
@with_model_options
def command(
    steering: Steering,
    policy_file: str | None,
    system: str | None,
    max_tokens: int,
    anchored: bool,
    max_dose: float | None,
    sampling: Sampling,
    n_ctx: int | None,
    model_options: ModelOptions,
) -> None:
    """Chat in the terminal, steered. /help lists the commands."""
    from localsteer.chat.conversation import Conversation
    from localsteer.chat.terminal import Terminal

    if policy_file is not None:
        from localsteer.policy.policy_file import load_policy

        load_policy(policy_file)  # a mistake in it is told before the model is loaded
    with model_options.open() as opened:
        limit = limit_for(opened, max_dose)

        def plan_for(steering: Steering, mode: Mode) -> Plan | None:
            return make_plan(steering, opened, mode=mode, limit=limit)

        def opposite_for(plan: Plan) -> Plan | None:
            return make_opposite(plan.steering, opened, mode=plan.mode, limit=limit)

        mode: Mode = "anchored" if anchored else "response"
        plan = plan_for(steering, mode)
        with (
            armed_policy(policy_file, opened, limit, mode) as armed,
            open_generator(opened, n_ctx) as generator,
        ):
            conversation = Conversation(
                generator,
                system=system,
                plan=plan,
                controller=new_controller(armed, mode),
                sampling=sampling,
                max_tokens=max_tokens,
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
