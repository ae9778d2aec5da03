"""`python -m router` is `ollama-router`."""

from router.cli.main import run

if __name__ == "__main__":
    run()
