"""`fetch_weights.py [VARIANT ...]`: puts published weights into the cache, for compute nodes without network."""

from spark_seg.cli.common import Parser
from spark_seg.errors import UserError, nearest

_EVERY = "all"


def main(argv: list[str] | None = None) -> int:
    """Parses and downloads what is not there yet; returns the exit code."""
    from spark_seg.models.published import LICENCE, SOURCES, VARIANTS, published

    parser = Parser(
        prog="fetch_weights",
        description="Download published weights on a machine with network (a login node) into the cache that "
        "training reads: $TORCH_HOME/hub/checkpoints, else ~/.cache/torch/hub/checkpoints. A folder that the "
        "compute nodes see as well.",
        epilog="Licence: the weights derive from NVIDIA's SegFormer and are for non-commercial use: "
        "https://github.com/NVlabs/SegFormer/blob/master/LICENSE",
    )
    parser.add_argument(
        "variants",
        nargs="*",
        metavar="VARIANT",
        help=f"{', '.join(VARIANTS)}, or {_EVERY} (default: b2)",
    )
    parser.add_argument(
        "--source",
        default="ade20k",
        help=f"{', '.join(SOURCES)}, or {_EVERY} (default: ade20k, which the configs start from); or a repository of "
        "the Hugging Face hub, such as nvidia/mit-b2, without VARIANT",
    )
    parser.add_argument(
        "--list", action="store_true", help="say what would be where, and download nothing"
    )
    args = parser.parse_args(argv)
    if "/" in args.source:
        return _from_hub(args.source, args.variants, args.list)
    variants = _chosen(args.variants or ["b2"], VARIANTS, "variant")
    sources = _chosen([args.source], SOURCES, "source")

    from spark_seg.models.download import cache_folder, fetch

    folder = cache_folder()
    print(f"licence: {LICENCE}")
    missing = 0
    for source in sources:
        for variant in variants:
            entry = published(source, variant)
            path = folder / entry.file
            there = path.is_file()
            missing += not there
            if not args.list:
                path = fetch(entry.url, entry.digest)
            state = "was there" if there else "not there" if args.list else "downloaded"
            print(f"{source} {variant}: {state}: {path}")
    if args.list and missing:
        print(f"{missing} to download")
    return 0


def _from_hub(repo: str, variants: list[str], only_list: bool) -> int:
    from spark_seg.models.hub import fetch_repo, find_repo, is_repo
    from spark_seg.models.published import licence_of

    if not is_repo(repo):
        raise UserError(f"--source {repo}: a repository of the hub is named owner/name")
    if variants:
        raise UserError(
            f"{variants[0]!r}: a repository of the hub is one variant; leave VARIANT out"
        )
    print(f"licence: {licence_of(repo)}")
    found = find_repo(repo)
    state = "was there" if found else "not there" if only_list else "downloaded"
    path = found or (None if only_list else fetch_repo(repo))
    print(f"{repo}: {state}{f': {path}' if path else ''}")
    return 0


def _chosen(names: list[str], known: tuple[str, ...], what: str) -> list[str]:
    if _EVERY in names:
        return list(known)
    for name in names:
        if name not in known:
            raise UserError(
                f"no {what} {name!r}: there are {', '.join(known)} and {_EVERY}"
                f"{nearest(name, [*known, _EVERY])}"
            )
    return list(dict.fromkeys(names))
