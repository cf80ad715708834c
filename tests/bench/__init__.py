"""The benchmark: trio-tunnel, a naive tunnel, and every peer on PATH, under the same load. `python -m tests.bench -h`.

`systems`, `peers`           what is measured, one small class each; `naive` is the tunnel that one would write first
`portable`                   ours on plain Trio waits, to say what those cost
`services`, `link`           what stands behind them, and the emulated link that may lie between
`loads`, `visitors`          what loads them: wrk, ab, iperf3 and Python
`figures`, `link_figures`    what is measured of a system; `rounds`: in which order
`idle_things`, `sessions`    a server with 200 sessions and 1,000 proxies of whom nobody wants anything
`watched`                    what metrics, history and open dashboards cost the relay
`report`, `panels`, `plot`, `machine`        what is written
`pool_bench`, `pool_service`, `pool_load`    `python -m tests.bench pool`: hot connections against cold, 1,631 addresses
`pool_tunnel`, `freezer`     `python -m tests.bench pool-tunnel`: the same through the tunnel, and an address that dies

Nothing here asserts a time: figures are medians of one machine's run, and compare only within that run.
"""
