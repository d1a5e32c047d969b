"""``boltzformer serve``: a MONAI Label server for a folder of scans or a DICOMweb server."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import json
import logging
import logging.config
import os
import signal
import socket
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from boltzformer_monai.cli.command_line import add_plugin, real_number, whole_number
from boltzformer_monai.errors import BoltzFormerError, ConfigError, StorageError, why
from boltzformer_monai.models.place import locate
from boltzformer_monai.registry import use_plugins

_log = logging.getLogger(__name__)

_MAIN = '''"""MONAI Label app; logs lie beside this file."""

from boltzformer_monai.label.app import BoltzFormerApp

__all__ = ["BoltzFormerApp"]
'''


class MissingExtraError(BoltzFormerError):
    """An optional dependency is not installed."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="serve scans to 3D Slicer, OHIF and the browser",
        description="Start a MONAI Label server; the page is at http://HOST:PORT/boltzformer/.",
        epilog="Checkpoints trained on corrected labels are stored in FOLDER/.boltzformer and used at the next start.",
    )
    parser.add_argument(
        "studies", metavar="FOLDER", help="folder of NIfTI or NRRD scans, or address of a DICOMweb server"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="MODEL",
        help="model.pt of a training, a model folder, or the id of a fetched model",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument(
        "--port", type=whole_number(1, 65535), default=8000, metavar="N", help="port to listen on (8000)"
    )
    parser.add_argument(
        "--workspace",
        type=Path,
        metavar="DIR",
        help="folder for trained checkpoints and scores (FOLDER/.boltzformer)",
    )
    parser.add_argument("--prompts", nargs="+", metavar="TEXT", help="default prompts (the checkpoint's targets)")
    parser.add_argument("--modality", metavar="CT|MR", help="for scans that do not state theirs")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, … (auto: a CUDA GPU if there is one)")
    parser.add_argument(
        "--cache-mb", type=whole_number(0), metavar="MB",
        help="memory for scans and image features (a quarter of the machine's)",
    )  # fmt: skip
    parser.add_argument(
        "--memory-gb", type=real_number(0, 1e6), metavar="GB", help="memory limit for reading one scan (half)"
    )
    parser.add_argument(
        "--keys", type=Path, metavar="FILE", help="file of API keys, see boltzformer key; no request without one"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text",
        help="json: one object a line, with a line and an id for every request (text)",
    )  # fmt: skip
    parser.add_argument(
        "--conf", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="any other setting of the server"
    )
    add_plugin(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the arguments, then run MONAI Label until the server is stopped.

    Raises:
        BoltzFormerError: something is missing or cannot be used.
        KeyboardInterrupt: the server was stopped by Ctrl-C.
    """
    if importlib.util.find_spec("monailabel") is None:
        install = "pip install 'boltzformer-monai[label]'"
        if sys.version_info >= (3, 13):
            install += " with Python 3.10 to 3.12: MONAI Label needs NumPy 1, which newer ones do not have"
        raise MissingExtraError(f"serve needs MONAI Label, which is not installed; {install}")
    from boltzformer_monai.label.server.temporary import PRIVATE

    before = os.umask(PRIVATE)
    try:
        _serve(arguments)
    finally:
        os.umask(before)
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    from boltzformer_monai.label.server.temporary import temporary_folder

    remote = arguments.studies.startswith(("http://", "https://"))
    if not remote:
        _check_folder(Path(arguments.studies))
    checkpoint = locate(arguments.checkpoint).path.absolute()
    _check_port(arguments.host, arguments.port)
    studies = arguments.studies if remote else str(Path(arguments.studies).resolve())
    settings = _conf(arguments, studies) | {"checkpoint": str(checkpoint)}
    workspace = Path(settings["workspace"])
    app = _app_folder(workspace)
    logs = _json_logs(app) if arguments.log_format == "json" else None
    use_plugins(arguments.plugins)
    _check_checkpoint(checkpoint)  # last, since it loads the file
    if not remote:
        _warn_of_unserved_files(Path(studies))
    with temporary_folder(workspace):
        _start(app, studies, settings, arguments.host, arguments.port, logs)


def _conf(arguments: argparse.Namespace, studies: str) -> dict[str, str]:
    from boltzformer_monai.label.server_settings import ServerSettings, default_workspace

    conf = dict(arguments.conf)
    conf["checkpoint"] = str(arguments.checkpoint.resolve())
    conf["workspace"] = str(Path(arguments.workspace or conf.get("workspace") or default_workspace(studies)).resolve())
    prompts = "; ".join(arguments.prompts or ())
    options = vars(arguments) | {"prompts": prompts}
    for key in ("device", "memory_gb", "cache_mb", "prompts", "modality"):
        if options[key] not in (None, ""):
            conf[key] = str(options[key])
    if arguments.keys is not None:
        conf["keys"] = str(arguments.keys.absolute())
    if arguments.log_format == "json":
        conf.setdefault("access_log", "true")
    ServerSettings.from_conf(conf, studies=studies)  # reports unknown keys now, in one line
    return conf


def _check_folder(studies: Path) -> None:
    if not studies.is_dir():
        raise ConfigError(f"no folder {studies}; give the folder of the scans, or the address of a DICOMweb server")
    try:
        with tempfile.TemporaryFile(dir=studies):
            pass
    except OSError as error:
        msg = f"{studies}: cannot be written ({why(error)}), and the labels are kept there; serve a folder with copies"
        raise StorageError(msg) from error


_OURS = ("datastore_v2.json", "datastore_v2.json.lock")  # MONAI Label's list and its lock


def _warn_of_unserved_files(studies: Path) -> None:
    """Warn if there is no scan, and of files that are not served: only image files in the folder itself are."""
    from boltzformer_monai.io.folder_tree import read_tree
    from boltzformer_monai.io.scan_list import find_left_out, tell_left_out
    from boltzformer_monai.label.datastore.folder import SCANS

    scans = [found for pattern in SCANS for found in studies.glob(pattern)]
    tree = read_tree(studies, follow=False)
    ours = [path for path in tree.files if path.is_relative_to(studies / "labels") or path.name in _OURS]
    for line in tell_left_out(find_left_out(tree, [*scans, *ours]), studies):
        _log.warning("%s", line)
    for place, reason in tree.closed:
        _log.warning("%s: left out, it cannot be opened (%s)", place, reason)
    if not scans:
        _log.warning(
            "no scan (%s) lies in %s itself; what is put there is noticed; DICOM series need a DICOMweb server",
            ", ".join(SCANS),
            studies,
        )


def _check_checkpoint(path: Path) -> None:
    from boltzformer_monai.models.folder import load_model

    with ThreadPoolExecutor(1) as thread:  # whose OpenMP threads end with it, see SegmentService
        thread.submit(load_model, path).result()


def _check_port(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({why(error)}); give another --port or --host") from error


def _app_folder(workspace: Path) -> Path:
    """A folder for the app: MONAI Label writes logs into it, so it must not be the installed package."""
    folder = workspace / "app"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        workspace.chmod(0o700)  # it may have been made by MONAI Label's start_server
        (folder / "main.py").write_text(_MAIN, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({why(error)}); give another --workspace") from error
    return folder


def _json_logs(app: Path) -> Path:
    """Log as JSON from now on; returns the configuration for the web server, which configures the logs anew."""
    from boltzformer_monai.label.server.json_logs import json_logging

    folder = app / "logs"
    file = app / "logging.json"
    try:
        folder.mkdir(exist_ok=True)
        configuration = json_logging(folder)
        file.write_text(json.dumps(configuration), encoding="utf-8")
        logging.config.dictConfig(configuration)
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder}: cannot be written ({why(error)}); give another --workspace") from error
    return file


def _start(app: Path, studies: str, conf: dict[str, str], host: str, port: int, logs: Path | None = None) -> None:
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import app_instance
    from monailabel.main import Main

    from boltzformer_monai.label.learning.workers import stop_background_tasks

    pairs = [word for key, value in conf.items() for word in ("--conf", key, value)]
    command = ["start_server", "--app", str(app), "--studies", studies, "--host", host, "--port", str(port), *pairs]
    command += [] if logs is None else ["--log_config", str(logs)]
    main = Main(actions=("start_server",))
    os.environ.setdefault("PYTHONPATH", "")  # MONAI Label passes it to its processes
    _log.info("starting; the page will be at http://%s:%d/boltzformer/", f"[{host}]" if ":" in host else host, port)
    if not settings.MONAI_LABEL_AUTH_ENABLE and "keys" not in conf and not _loopback(host):
        _log.warning(
            "listening on %s without sign-in: anybody who reaches this address can read and change all scans "
            "and labels; omit --host, or give --keys, or set MONAI_LABEL_AUTH_ENABLE",
            host,
        )
    options = main.args_parser().parse_args(command)
    # By default all servers share one session folder in the user's home.
    settings.MONAI_LABEL_SESSION_PATH = settings.MONAI_LABEL_SESSION_PATH or str(Path(conf["workspace"]) / "sessions")
    main.start_server_init_settings(options)
    served = app_instance()  # errors are one line here; in the web server they would be a traceback
    if studies.startswith(("http://", "https://")):
        try:
            served.datastore().list_images()
        except StorageError as error:  # it may be back soon
            _log.warning("%s", error)
    # uvicorn raises the signal that stopped it again; without a handler that would end the process before its temporary
    # files are removed.
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        main.action_start_server(options)
    finally:
        signal.signal(signal.SIGTERM, before)
        stop_background_tasks()
    raise KeyboardInterrupt  # uvicorn handles it


def _stopped(number: int, frame: Any) -> NoReturn:
    raise SystemExit(0)


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
