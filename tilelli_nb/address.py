"""Where the book's repository lives on the web."""

# `make address URL=https://...` writes it here and wherever else it is needed. It is
# empty until somebody who owns it has said so: whoever owned a name that was made up
# could run their code on every reader's machine.
REPOSITORY = ""
FOLDER = "tilelli-book"  # that a clone makes
