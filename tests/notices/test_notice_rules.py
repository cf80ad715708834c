"""What is told, and exactly when: rules are fed events and a clock, and say what is due."""

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from notice_rig import AT, Ear, config, update

from tunnel.config.receivers import NOTICE_EVENTS
from tunnel.messages import Reason
from tunnel.notices.cases import MAX_CASES, VOID_WAKES
from tunnel.snapshot import ProxyView, SessionView, Snapshot

HOUR = 3600.0


# Proxies


def test_a_proxy_that_was_given_up_is_told_at_once_and_its_recovery_too() -> None:
    ear = Ear().until(10).fails().until(100).heals().until(HOUR)
    assert ear.told == [(10, "bind_failed", 1), (100, "recovered", 1)]
    failed, recovered = (group.subjects[0] for group in ear.groups)
    assert (failed.client, failed.proxy, failed.reason, failed.where) == ("home", "web", "addr_in_use", "0.0.0.0:8001")
    assert (failed.status, failed.seconds, failed.since) == ("bind_failed", None, AT)
    assert (recovered.status, recovered.seconds, recovered.was) == ("healthy", 90.0, "bind_failed")


def test_what_is_unhealthy_is_told_only_once_it_has_lasted() -> None:
    ear = Ear(after=60.0).sick().until(59.9).heals().until(70).sick("ssh").until(HOUR)
    assert ear.told == [(130, "unhealthy", 1)]
    assert ear.last.proxy == "ssh"


def test_another_reason_meanwhile_does_not_start_the_time_afresh_and_the_newest_is_told() -> None:
    ear = Ear().sick(reason=Reason.PENDING).until(30).sick(reason=Reason.ADDR_IN_USE).until(HOUR)
    assert ear.told == [(60, "unhealthy", 1)]
    assert ear.last.reason == "addr_in_use"


def test_what_gets_worse_is_told_at_once_and_what_gets_better_but_not_well_is_not() -> None:
    ear = Ear().sick().until(70).fails().until(80).sick().until(90).heals().until(HOUR)
    assert ear.told == [(60, "unhealthy", 1), (70, "bind_failed", 1), (90, "recovered", 1)]
    assert ear.last.seconds == 90.0


def test_one_that_fails_again_after_a_retry_is_told_again_once_the_interval_is_over() -> None:
    ear = Ear(interval=300.0).fails().until(20).sick().until(50).fails().until(HOUR)
    assert ear.told == [(0, "bind_failed", 1), (300, "bind_failed", 1)]
    assert ear.last.times == 1


def test_flapping_is_its_first_trouble_and_end_and_then_one_notice_an_interval_with_the_count() -> None:
    ear = Ear(interval=300.0)
    for second in range(0, 1000, 10):
        ear.until(second).fails().until(second + 5).heals()
    ear.until(HOUR)
    assert ear.told == [
        (0, "bind_failed", 1), (5, "recovered", 1),
        (300, "recovered", 1), (600, "recovered", 1), (900, "recovered", 1), (1200, "recovered", 1),
    ]  # fmt: skip
    assert [group.subjects[0].times for group in ear.groups] == [1, 1, 29, 30, 30, 10]


def test_who_does_not_want_recoveries_hears_of_what_came_and_went_within_the_interval_all_the_same() -> None:
    ear = Ear(events=("bind_failed",)).fails().until(10).heals().until(20).fails().until(30).heals().until(HOUR)
    assert ear.told == [(0, "bind_failed", 1), (300, "bind_failed", 1)]
    assert (ear.last.status, ear.last.times, ear.last.seconds) == ("healthy", 1, 10.0)


def test_what_nobody_chose_is_not_told_nor_its_end() -> None:
    ear = Ear(events=("session_lost", "recovered")).fails().until(100).heals().sick("ssh").until(HOUR)
    assert ear.told == []


def test_who_chose_unhealthy_alone_hears_of_what_was_given_up_as_of_the_rest() -> None:
    assert Ear(events=("unhealthy",)).fails().until(HOUR).told == [(60, "unhealthy", 1)]


def test_only_what_the_patterns_name_is_told() -> None:
    ear = Ear(clients=("home", "lab-?"), proxies=("web*",))
    ear.fails("web-1").fails("ssh").fails("web", client="office").fails("web", client="lab-2").until(HOUR)
    assert [(group.subjects[0].client, group.subjects[0].proxy) for group in ear.groups] == [
        ("home", "web-1"), ("lab-2", "web"),
    ]  # fmt: skip


def test_what_is_removed_while_it_is_in_trouble_is_told_as_over() -> None:
    ear = Ear().fails().until(10).hear("proxy.removed", "home", "web").until(HOUR)
    assert ear.told == [(0, "bind_failed", 1), (10, "recovered", 1)]
    assert ear.last.status == "removed"


# Gathering


def test_a_thousand_proxies_that_fail_within_seconds_are_one_notice_that_names_the_first() -> None:
    ear = Ear(gather=5.0)
    for number in range(1000):
        ear.until(number / 250).fails(f"p{number}")
    assert ear.until(HOUR).told == [(5, "bind_failed", 1000)]
    assert [subject.proxy for subject in ear.groups[0].subjects] == [f"p{number}" for number in range(20)]


def test_of_what_fails_and_recovers_while_notices_are_gathered_its_newest_state_is_told() -> None:
    ear = Ear(gather=5.0).fails().until(1).heals().until(2).fails("ssh").until(HOUR)
    assert sorted(ear.told) == [(5, "bind_failed", 1), (5, "recovered", 1)]
    assert {group.kind: group.subjects[0].proxy for group in ear.groups} == {"recovered": "web", "bind_failed": "ssh"}


def test_whatever_happens_there_are_ten_notices_at_once_and_then_one_a_minute() -> None:
    ear = Ear(interval=0.0)
    for second in range(600):
        ear.until(second).fails(f"p{second}")
    ear.until(2 * HOUR)
    assert [at for at, _, _ in ear.told[:10]] == list(range(10))
    assert len(ear.told) <= 10 + 600 / 60 + 1
    assert sum(count for _, _, count in ear.told) == 600


# Sessions at a server


@pytest.mark.parametrize("reason", ["goodbye", "replaced", "revoked", "draining"])
def test_a_session_that_somebody_meant_to_end_is_no_news(reason: str) -> None:
    assert Ear().starts().ends(reason).until(HOUR).told == []


def test_a_session_that_is_back_in_time_is_no_news() -> None:
    assert Ear(after=60.0).starts().ends().until(59).starts().until(HOUR).told == []


@pytest.mark.parametrize("reason", ["lost", "protocol_error", "stopping"])
def test_a_lost_session_is_told_with_what_went_with_it_and_its_return(reason: str) -> None:
    ear = Ear().starts()
    for number in range(7):
        ear.heals(f"p{number}")
    ear.until(100).ends(reason).until(400).starts().until(HOUR)
    assert ear.told == [(160, "session_lost", 1), (400, "recovered", 1)]
    lost = ear.groups[0].subjects[0]
    assert (lost.client, lost.reason, lost.proxies_total, lost.proxies) == (
        "home",
        reason,
        7,
        ("p0", "p1", "p2", "p3", "p4"),
    )
    assert (ear.last.status, ear.last.seconds) == ("connected", 300.0)


def test_an_expected_client_that_never_comes_or_stays_away_after_a_goodbye_is_told() -> None:
    ear = Ear(expected=("home", "lab"))
    there = Snapshot("server", "", (SessionView("lab", AT, ()),))
    ear.rules.seed(there, 0.0, at=AT, is_ready=True)
    ear.until(100).starts().until(200).ends("goodbye", client="lab").until(300).ends("revoked").until(HOUR)
    assert ear.told == [(60, "session_lost", 1), (100, "recovered", 1), (260, "session_lost", 1)]
    assert [group.subjects[0].client for group in ear.groups] == ["home", "home", "lab"]
    assert ear.groups[0].subjects[0].message == "it has not connected since the server started"


def test_a_session_that_was_taken_over_before_the_old_one_ended_is_there() -> None:
    assert Ear().starts().starts().ends().until(HOUR).told == []


def test_a_client_that_comes_with_other_proxies_each_time_is_lost_with_its_newest_alone() -> None:
    ear = Ear(after=0.0, interval=0.0)
    for life in range(3):
        ear.starts().heals(f"web-{life}").ends()
    assert [(group.subjects[0].proxies_total, group.subjects[0].proxies) for group in ear.groups[::2]] == [
        (1, (f"web-{life}",)) for life in range(3)
    ]


def test_two_hundred_clients_behind_one_line_are_one_notice() -> None:
    ear = Ear(gather=5.0)
    for number in range(200):
        ear.starts(client=f"c{number}")
    for number in range(200):
        ear.until(number / 100).ends(client=f"c{number}")
    assert ear.until(HOUR).told == [(65, "session_lost", 200)]


def test_the_troubles_of_a_lost_client_rest_and_are_over_only_when_it_is_back_and_well() -> None:
    ear = Ear().starts().sick().until(10).ends().until(100).starts().until(110).heals().until(HOUR)
    assert ear.told == [(70, "session_lost", 1), (100, "recovered", 1)]
    ear = Ear().starts().fails().until(10).ends().until(100).starts().until(110).heals().until(HOUR)
    assert ear.told[-1] == (110, "recovered", 1)
    assert ear.last.proxy == "web"


def test_a_client_that_leaves_takes_its_troubles_along_but_not_if_it_is_back_soon() -> None:
    ear = Ear().starts().fails().until(10).ends("goodbye").until(HOUR)
    assert ear.told == [(0, "bind_failed", 1), (70, "recovered", 1)]
    ear = Ear().starts().fails().until(10).ends("goodbye").until(20).starts().until(30).fails().until(HOUR)
    assert ear.told == [(0, "bind_failed", 1), (300, "bind_failed", 1)]


# The session of a client


def client(**changes: object) -> Ear:
    ear = Ear(is_server=False, **changes)
    ear.rules.seed(Snapshot("client", "", (SessionView("", AT, ()),)), 0.0, at=AT, is_ready=False)
    return ear


def test_a_client_that_never_connects_says_so_and_why() -> None:
    ear = client().hear("session.connecting", "", detail="", retry_in=None)
    ear.until(5).hear("session.connecting", "", detail="tunnel.example.com: refused", retry_in=None).until(HOUR)
    assert ear.told == [(60, "session_lost", 1)]
    assert ear.last.message == "tunnel.example.com: refused"


def test_a_lost_session_is_one_notice_whatever_its_proxies_are_then() -> None:
    ear = client().until(1).hear("session.connected", "home", detail="home", retry_in=None)
    for number in range(1000):
        ear.heals(f"p{number}")
    ear.until(100).hear("session.lost", "home", detail="it went silent", retry_in=1.0)
    for number in range(1000):
        ear.status(f"p{number}", "unhealthy", Reason.SESSION_LOST, "it went silent")
    ear.until(500).hear("session.connected", "home", detail="home", retry_in=None)
    for number in range(1000):
        ear.heals(f"p{number}")
    assert ear.until(HOUR).told == [(160, "session_lost", 1), (500, "recovered", 1)]
    assert ear.groups[0].subjects[0].proxies_total == 1000


def test_who_did_not_choose_lost_sessions_hears_of_the_proxies_in_one_notice() -> None:
    ear = client(events=("unhealthy", "recovered"), gather=5.0)
    for number in range(1000):
        ear.status(f"p{number}", "unhealthy", Reason.SESSION_LOST, "it went silent")
    ear.until(100)
    for number in range(1000):
        ear.heals(f"p{number}")
    assert ear.until(HOUR).told == [(65, "unhealthy", 1000), (105, "recovered", 1000)]


def test_a_client_that_stops_says_nothing_of_its_proxies() -> None:
    assert client(events=("unhealthy",)).status("web", "unhealthy", Reason.DRAINING, "stopping").until(HOUR).told == []


# The certificate and the configuration


def test_a_certificate_is_told_when_its_days_are_few_once_a_day_until_it_is_renewed() -> None:
    ear = Ear(days=3)
    for day in range(6, -1, -1):
        ear.until((6 - day) * 86_400 + 5).hear("certificate.expiring", "", not_after="soon", days=day)
    ear.hear("certificate.loaded", "", not_after="soon").hear("certificate.loaded", "", not_after="later")
    assert [(at, kind) for at, kind, _ in ear.told] == [
        *((day * 86_400 + 5, "certificate_expiring") for day in (3, 4, 5, 6)), (6 * 86_400 + 5, "recovered"),
    ]  # fmt: skip
    assert ear.groups[0].subjects[0].message == "the server's certificate ends in 3 days, at soon"
    assert ear.last.status == "renewed"


def test_a_certificate_that_is_loaded_often_is_told_once_a_day_all_the_same() -> None:
    ear = Ear(interval=60.0)
    for minute in range(100):
        ear.until(60 * minute).hear("certificate.expiring", "", not_after="soon", days=1)
    assert ear.told == [(0, "certificate_expiring", 1)]


def test_a_refused_configuration_is_told_with_its_mistakes_and_when_a_good_one_came() -> None:
    ear = Ear().hear("config.refused", "", mistakes=["a.toml:3: no", "a.toml:4: nor that"])
    ear.until(10).hear("config.refused", "", mistakes="another").until(20).hear("config.reloaded", "", changes="")
    ear.until(HOUR)
    assert ear.told == [(0, "config_refused", 1), (20, "recovered", 1)]
    assert ear.groups[0].subjects[0].message == "a.toml:3: no; a.toml:4: nor that"


# Bounds, and what is there already


def test_rules_that_come_into_force_later_take_over_what_there_is() -> None:
    ear = Ear()
    web = update("web", "unhealthy", Reason.TARGET_DOWN, "nobody answers")
    shown = {name: getattr(web, name) for name in ("status", "reason", "error_message", "retry_after_seconds", "since",
             "attempt", "max_retries", "publish_addr", "publish_port")}  # fmt: skip
    view = ProxyView(name="web", target="", visitors=0, visitors_total=0, bytes_in=0, bytes_out=0, **shown)
    ear.rules.seed(Snapshot("server", "", (SessionView("home", AT, (view,)),)), 0.0, at=AT, is_ready=True)
    ear.until(10).ends().until(HOUR)
    assert ear.told == [(70, "session_lost", 1)]
    assert ear.last.proxies == ("web",)


def changed(ear: Ear, **changes: object) -> Ear:
    """Other rules, of a server with nobody there."""
    ear.rules.apply(config(**changes), ear.now)
    ear.rules.seed(Snapshot("server", "", ()), ear.now, at=AT, is_ready=True)
    return ear


def test_rules_that_change_remember_what_was_told_and_go_on_from_there() -> None:
    ear = changed(Ear().fails().sick("ssh").until(10), after=20.0).until(50).heals().heals("ssh").until(HOUR)
    assert ear.told == [(0, "bind_failed", 1), (20, "unhealthy", 1), (50, "recovered", 1), (50, "recovered", 1)]


def test_rules_that_want_more_tell_what_there_is_and_those_that_want_less_leave_the_rest() -> None:
    ear = changed(Ear(events=("session_lost",)).sick().until(100), events=("unhealthy", "recovered")).until(HOUR)
    assert ear.told == [(100, "unhealthy", 1)]
    ear = changed(Ear().sick().sick("ssh").until(10), proxies=("web",)).until(HOUR)
    assert ear.told == [(60, "unhealthy", 1)]
    assert ear.last.proxy == "web"
    ear = changed(Ear().until(10), expected=("home",)).until(HOUR)
    assert ear.told == [(70, "session_lost", 1)]


def test_what_is_mended_and_told_is_forgotten() -> None:
    ear = Ear().fails().until(10).heals().sick("ssh").heals("ssh").until(HOUR)
    assert len(ear.rules._cases) == 0
    assert ear.rules.next_at == inf


@pytest.mark.slow
def test_more_troubles_than_anybody_can_have_are_counted_and_not_kept() -> None:
    ear = Ear(events=("unhealthy",))
    for number in range(MAX_CASES + 5):
        ear.status(f"p{number}", "unhealthy", Reason.TARGET_DOWN, client=f"c{number // 1000}")
    assert (len(ear.rules._cases), ear.rules.ignored) == (MAX_CASES, 5)
    assert ear.until(HOUR).told == [(60, "unhealthy", MAX_CASES)]


def test_what_comes_and_goes_without_end_leaves_nothing_behind() -> None:
    ear = Ear(after=HOUR)
    for _ in range(100):
        for number in range(100):
            ear.sick(f"p{number}").heals(f"p{number}")
    assert len(ear.rules._cases._wakes) <= VOID_WAKES + 2
    ear.sick("p0").until(2 * HOUR)
    assert ear.told == [(HOUR, "unhealthy", 1)]


def test_what_a_peer_writes_is_one_printable_line_of_bounded_length() -> None:
    ear = Ear().status("web", "bind_failed", Reason.OS_ERROR, "a\r\nBcc: x@y\x1b[2J" + "x" * 5000)
    assert ear.last.message.startswith("a  Bcc: x@y?[2J")
    assert len(ear.last.message) <= 300


STEPS = st.lists(
    st.tuples(st.sampled_from(["fails", "sick", "heals", "ends", "starts", "reload"]), st.floats(0, 200)), max_size=40
)


@example([("fails", 0.0), ("sick", 0.0), ("fails", 0.0), ("sick", 0.0)], {"bind_failed"})
@given(STEPS, st.sets(st.sampled_from(NOTICE_EVENTS)))
def test_nobody_is_left_believing_in_a_trouble_that_is_over(steps: list[tuple[str, float]], events: set[str]) -> None:
    """And of one thing there are never two notices of equal trouble within the interval."""
    ear = Ear(events=tuple(events), interval=100.0).starts()
    for act, wait in steps:
        if act == "reload":
            ear.rules.apply(config(events=tuple(events), interval=100.0, after=wait), ear.now)
        else:
            getattr(ear, act)()
        ear.until(ear.now + wait)
    ear.starts().heals().until(ear.now + HOUR)
    believed: dict[str, str] = {}
    told_at: dict[tuple[str, str], float] = {}
    for (at, kind, _), group in zip(ear.told, ear.groups, strict=True):
        assert kind in events
        for subject in group.subjects:
            if kind == "recovered":
                believed.pop(subject.proxy, None)
                continue
            assert at - told_at.get((subject.proxy, kind), -inf) > 99.999
            told_at[subject.proxy, kind] = at
            if subject.status != "healthy" and "recovered" in events:
                believed[subject.proxy] = kind
    assert believed == {}
    assert len(ear.rules._cases) == 0
