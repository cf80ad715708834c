"""What makes and holds the pages of deploy/docs: `python -m tests.docs` writes what is generated."""
