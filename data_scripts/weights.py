"""Fetch pre-trained weights, so that later runs need no network: SD 2.1 base, CLIP ViT-H, BLIP, metric networks.

Models go to the hub's own cache, where from_pretrained(ID) finds them, or with --out to OUT/NAME, for
from_pretrained(OUT/NAME). Metric networks go to torch's hub folder, or to OUT/torch/hub (then set
TORCH_HOME=OUT/torch). Of formats that a repository offers, safetensors are taken.

    python data_scripts/weights.py                       everything, 11 GB
    python data_scripts/weights.py sd clip --out weights
    python data_scripts/weights.py sd --id owner/name --revision COMMIT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _command
import _models


def main(argv: list[str] | None = None) -> int:
    from gcgkit.metrics.weights import WEIGHT_FILES

    names = [*_models.MODELS, *WEIGHT_FILES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--id", help="another repository for the one model named")
    parser.add_argument("--revision", help="branch, tag or commit of the one model named (main)")
    parser.add_argument("--url", help="a mirror: of the hub (models), of one file (a metric network), or a local file")
    parser.add_argument("--sha256", metavar="HEX", help="expected digest of a metric network; none accepts any")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="plain folders instead of the caches")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched and how big it is")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in names]
    if unknown:
        parser.error(f"there are no weights called {unknown[0]}; give some of {', '.join(names)}")
    args.names = args.names or names
    return _command.run(_run, args)


def _run(args: argparse.Namespace) -> None:
    from gcgkit.metrics.weights import WEIGHT_FILES

    if len(args.names) > 1 and (args.id or args.revision or args.sha256):
        raise ValueError("--id, --revision and --sha256 go with one NAME.")
    if args.url and len(args.names) > 1 and set(args.names) & set(WEIGHT_FILES):
        raise ValueError("--url is the address of one file here: give one metric network as NAME.")
    for name in args.names:
        if name in _models.MODELS:
            _model(args, name, _models.MODELS[name])
        else:
            _file(args, WEIGHT_FILES[name])


def _model(args: argparse.Namespace, name: str, model: dict) -> None:
    from gcgkit.utils import download
    from gcgkit.utils.files import size_text

    repo, revision = args.id or model["repo"], args.revision or "main"
    folder = args.out / name if args.out else None
    if args.url and download.local_path(args.url) is not None:
        raise ValueError(f"{args.url} is a local folder: from_pretrained loads it as it is, nothing has to be fetched.")
    options = {"revision": revision, "folder": folder, "endpoint": args.url}
    if args.dry_run:
        try:
            files = _models.plan_model(repo, model["parts"], **options)
        except ConnectionError as error:
            print(f"{model['title']}: would fetch {repo} (about {size_text(model['size'])}); {error}")
            return
        missing = [file for file in files if file.here is None]
        size = size_text(sum(file.size for file in missing))
        print(f"{model['title']}: would fetch {len(missing)} of {len(files)} files of {repo} at {revision} ({size}).")
        return
    where = _models.fetch_model(repo, model["parts"], **options)
    print(f"{model['title']}: {repo} is in {where}. Terms: {model['terms']}.")


def _file(args: argparse.Namespace, file) -> None:
    from gcgkit.metrics.weights import torch_hub_folder
    from gcgkit.utils import download
    from gcgkit.utils.files import size_text

    root = args.out / "torch" / "hub" if args.out else torch_hub_folder()
    source, path = args.url or file.url, root / file.place
    if args.dry_run:
        if path.exists():
            print(f"{file.title}: is in {path} already.")
            return
        try:
            size = download.remote_size(source)
        except ConnectionError:
            size = None
        unknown = f"about {size_text(file.size)}; the server cannot be reached now"
        about = unknown if size is None else size_text(size)
        print(f"{file.title}: would fetch {source} ({about}) to {path}.")
        return
    digest = args.sha256 or file.sha256
    found = download.fetch(source, path, sha256=None if digest == "none" else digest)
    if found != path:  # a local file: the package looks in its own place only
        import shutil

        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, path.with_name(path.name + ".partial"))
        path.with_name(path.name + ".partial").replace(path)
    print(f"{file.title}: is in {path}. Terms: {file.terms}.")


if __name__ == "__main__":
    sys.exit(main())
