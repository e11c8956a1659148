"""The challenge's rule as options, for commands that have no config to take it from.

The names and the values are those of `val_evaluator` in a config.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spark_seg.evaluation.challenge import ChallengeRule

_NAMES = ("thresholds", "panel_share", "empty_union")


def add_rule(parser: argparse.ArgumentParser, description: str | None = None) -> None:
    """Adds --thresholds, --panel-share and --empty-union."""
    group = parser.add_argument_group("the challenge's score", description)
    group.add_argument(
        "--thresholds", type=float, nargs="+", help="of spark/score (default: 0.5 0.55 ... 0.95)"
    )
    group.add_argument(
        "--panel-share",
        type=float,
        help="least panel area, as a share of the body's, at which a panel counts (default: 0.05)",
    )
    group.add_argument(
        "--empty-union",
        type=float,
        help="what a part earns that is neither true nor predicted, where it counts (default: 0)",
    )


def chosen_rule(
    args: argparse.Namespace, default: "Callable[[], ChallengeRule] | None" = None
) -> "ChallengeRule":
    """The rule that the options ask for.

    Args:
        args: Parsed with `add_rule`'s options.
        default: Where no option is given, asked for the rule; None takes the one that is believed.

    Raises:
        UserError: A value that makes no sense.
    """
    from spark_seg.evaluation.challenge import ChallengeRule

    given = {name: getattr(args, name) for name in _NAMES if getattr(args, name) is not None}
    if not given and default is not None:
        return default()
    if "thresholds" in given:
        given["thresholds"] = tuple(given["thresholds"])
    return ChallengeRule(**given)
