"""`localsteer chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from localsteer.commands.options import (
    ModelOptions,
    anchored_option,
    armed_policy,
    context_option,
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
    expression: str,
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
    from localsteer.steering.expression import parse_steering

    # Mistakes are told before the model is loaded.
    parse_steering(expression)
    if policy_file is not None:
        from localsteer.policy.policy_file import load_policy

        load_policy(policy_file)
    with model_options.open() as opened:

        def plan_for(expression: str, anchored: bool) -> Plan | None:
            mode: Mode = "anchored" if anchored else "response"
            # Both ways, because /compare answers both.
            return make_plan(expression, opened, mode=mode, max_dose=max_dose, both_ways=True)

        plan = plan_for(expression, anchored)
        with (
            armed_policy(policy_file, opened, max_dose, anchored=anchored) as armed,
            open_generator(opened, n_ctx) as generator,
        ):
            conversation = Conversation(
                generator,
                system=system,
                plan=plan,
                controller=new_controller(armed, anchored=anchored),
                sampling=sampling,
                max_tokens=max_tokens,
                anchored=anchored,
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
                policy_for=None if armed is None else lambda anchored: policy_for(armed, max_dose, anchored=anchored),
            ).run()
