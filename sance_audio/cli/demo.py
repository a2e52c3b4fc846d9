"""`sance-audio demo`: a run in the browser."""

from __future__ import annotations

__all__ = ["Demo", "demo"]

from dataclasses import dataclass

from tyro.conf import Positional


@dataclass(frozen=True)
class Demo:
    """Play with a run in a browser: new clips by seed and temperature, recordings judged."""

    run: Positional[str]
    """Run folder, with a model, a detector or both."""
    port: int = 7860
    """Of the server."""
    host: str = "127.0.0.1"
    """Address it listens at: this machine alone; 0.0.0.0 for others, too."""
    open: bool = False
    """Open the browser."""


def demo(args: Demo) -> None:
    from sance_audio.demo import app

    if not 0 < args.port < 2**16:
        raise ValueError(f"--port must be between 1 and 65535, found {args.port}")
    page = app(args.run)
    try:
        page.launch(server_name=args.host, server_port=args.port, inbrowser=args.open, share=False)
    except OSError as error:
        raise ValueError(f"--port {args.port}: {error}; name another port") from error
