"""`python -m sance_audio` is `sance-audio`."""

from sance_audio.cli import main

if __name__ == "__main__":
    main()
