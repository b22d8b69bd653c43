"""`python -m darkroom_train` is the `darkroom-train` command."""

from darkroom_train.cli import main

if __name__ == "__main__":
    main(prog_name="darkroom-train")
