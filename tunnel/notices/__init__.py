"""Tells people what happened while they were not looking, by webhooks and e-mail.

    events ─▶ rules ─▶ gathering ─▶ courier ─▶ webhook | email
              one Case a proxy,     one a notice of the configuration: a bounded queue,
              client, certificate   tries again, gives up, counts

`rules` and what is under it know no clock and no socket; `board` runs the rest beside a tunnel.
"""
