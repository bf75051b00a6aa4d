"""`python cli/start.py -m cli NAME flags…`: runs a command of `cli.commands`."""

from cli import app

if __name__ == "__main__":
    app.main()
