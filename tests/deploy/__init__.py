"""What `deploy/` holds, tried: `python -m tests.deploy.compose -h` runs the Compose demo with a real Docker engine.

`engine`      the engine, Compose in either spelling, and a base image; `engine.sh` makes them where there are none
`compose`     the demo from its start to its end, each step timed
"""
