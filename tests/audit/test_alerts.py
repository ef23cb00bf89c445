"""Each rule fires for what it names, says why with the figures, and stays silent where the data explains."""

from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from hie.audit.alerts import Rule, Touch, Watch
from hie.audit.relations import Contact, Relation, UserFacts, explain
from hie.audit.thresholds import Thresholds
from hie.core.errors import ConfigurationError
from tests.audit.community import FakeCommunity, person, user

MONDAY = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
ROSA, LAKESIDE = "rosa", "lakeside"
LOOSE = "without an encounter, a registration or a colleague on the same patient"


class World:
    """Accesses in order, and what is known of the people."""

    def __init__(self):
        self.community = FakeCommunity()
        self.community.staff[LAKESIDE, ROSA] = user("ortiz", "4 quay road")
        self.touches = []
        self._numbers = count()

    def open(self, person_id, at=MONDAY, actor=ROSA, *, explained=False, search=False, request=None):
        if explained:
            self.relate(person_id, Relation.ENCOUNTER, at)
        index = next(self._numbers)
        request = request or f"r-{index}"
        self.touches.append(Touch(index, at, not search, LAKESIDE, actor, person_id, request))

    def relate(self, person_id, relation, at=MONDAY, user_id=None):
        self.community.known.append(Contact(person_id, LAKESIDE, relation, at, at, user_id))

    def quiet_weeks(self, actors=(ROSA,), people=5, days=20, before=MONDAY, searches=0, hour=9):
        """Ordinary days, everybody explained."""
        for number in range(days, 0, -1):
            at = (before - timedelta(days=number)).replace(hour=hour)
            for actor in actors:
                for one in range(people):
                    self.open(f"{actor}-{number}-{one}", at + timedelta(minutes=30 * one), actor, explained=True)
                for one in range(searches):
                    self.open(f"{actor}-{number}-{one}", at, actor, search=True)

    def alerts(self, **limits):
        watch = Watch(self.community, Thresholds(**limits))
        return [alert for day in watch.days(sorted(self.touches, key=lambda t: (t.at, t.index))) for alert in day]

    def fired(self, **limits):
        return [alert.rule for alert in self.alerts(**limits)]


@pytest.fixture
def world():
    return World()


# -- explain first


@pytest.mark.parametrize(
    ("relation", "days", "explained"),
    [
        (Relation.ENCOUNTER, 30, True),
        (Relation.ENCOUNTER, 31, False),
        (Relation.ENCOUNTER, -1, True),
        (Relation.ENCOUNTER, -2, False),
        (Relation.ADMISSION, 30, True),
        (Relation.REGISTRATION, 14, True),
        (Relation.REGISTRATION, -14, True),
        (Relation.REGISTRATION, 15, False),
        (Relation.SOURCE_RECORD, 4000, True),
        (Relation.SOURCE_RECORD, -1, False),
    ],
)
def test_a_relation_explains_for_its_time(relation, days, explained):
    contact = Contact("p", LAKESIDE, relation, MONDAY, MONDAY)
    found = explain(MONDAY + timedelta(days=days), ROSA, [contact], contact_days=30, registration_days=14)
    assert (found is not None) == explained
    if found:
        assert found.strong == (relation is not Relation.SOURCE_RECORD)


def test_an_open_panel_lasts_and_the_users_own_relation_comes_first():
    panel = Contact("p", LAKESIDE, Relation.PANEL, MONDAY - timedelta(days=900))
    own = Contact("p", LAKESIDE, Relation.REFERRAL, MONDAY, MONDAY, ROSA)
    found = explain(MONDAY, ROSA, [panel, own], contact_days=30, registration_days=14)
    assert (found.relation, found.personal) == (Relation.REFERRAL, True)
    found = explain(MONDAY, "another", [panel], contact_days=30, registration_days=14)
    assert (found.relation, found.personal) == (Relation.PANEL, False)


def test_explained_accesses_raise_nothing(world):
    world.quiet_weeks()
    world.community.facts["marta"] = person("ortiz", vip=True, employers=frozenset({LAKESIDE}))
    world.open("marta", explained=True)
    assert world.fired() == []


# -- whose records


def test_somebody_of_the_same_address_even_if_the_organization_knows_her(world):
    world.community.facts["marta"] = person("lindqvist", "4 quay road")
    world.open("marta", explained=True)
    (alert,) = world.alerts()
    assert (alert.rule, alert.person_ids, alert.entries) == (Rule.SAME_ADDRESS, ("marta",), (0,))
    assert alert.sentence == (
        "Opened the records of somebody who lives at the user's own address; the organization has a relation to that "
        "person (encounter), the user none that is known."
    )


def test_a_relation_of_the_users_own_explains_even_the_same_address(world):
    world.community.facts["marta"] = person("lindqvist", "4 quay road")
    world.relate("marta", Relation.PANEL, user_id=ROSA)
    world.open("marta")
    assert world.fired() == []


def test_the_users_own_record(world):
    world.community.staff[LAKESIDE, ROSA] = UserFacts("ortiz", frozenset(), "rosa-herself")
    world.open("rosa-herself")
    assert "the user's own person" in world.alerts()[0].sentence


def test_somebody_of_the_same_rare_name(world):
    world.community.facts["luis"] = person("ortiz")
    world.open("luis")
    (alert,) = world.alerts()
    assert alert.rule is Rule.SAME_NAME
    assert alert.sentence == (
        "Opened the records of somebody with the user's own family name, which 0.01% of all people here bear; nothing "
        "at the user's organization explains it."
    )


def test_a_common_name_says_nothing(world):
    world.community.shares["ortiz"] = 0.01
    world.community.facts["luis"] = person("ortiz")
    world.open("luis")
    assert world.fired() == []
    assert world.fired(rare_name_share=0.02) == [Rule.SAME_NAME]


@pytest.mark.parametrize(
    ("facts", "rule"), [({"employers": frozenset({LAKESIDE})}, Rule.COLLEAGUE), ({"vip": True}, Rule.VIP)]
)
def test_a_colleague_and_a_vip_unless_explained(world, facts, rule):
    world.community.facts["ada"] = person(**facts)
    world.relate("ada", Relation.SOURCE_RECORD, MONDAY - timedelta(days=900))
    world.open("ada")
    (alert,) = world.alerts()
    assert alert.rule is rule
    assert "the organization holds an old record, and no encounter or registration in that time" in alert.sentence


def team(world, person_id, size, days=0):
    for number in range(size):
        world.open(person_id, MONDAY + timedelta(days=days, minutes=number), f"u{number}")


@pytest.mark.parametrize(("others", "days", "fires"), [(0, 0, 1), (1, 0, 0), (2, 6, 0), (1, 8, 2), (6, 0, 7)])
def test_whom_a_few_colleagues_see_too_is_a_patient_and_whom_everybody_sees_is_talked_about(world, others, days, fires):
    """A registration that is missing leaves a whole team without a reason; a private interest stays alone."""
    world.community.facts["marta"] = person("lindqvist", employers=frozenset({LAKESIDE}))
    team(world, "marta", others)
    world.open("marta", MONDAY + timedelta(days=days, hours=1))
    assert world.fired() == [Rule.COLLEAGUE] * fires


def test_a_team_explains_no_vip_and_nobody_of_the_users_own(world):
    world.community.facts["vip"] = person("moreau", vip=True)
    world.community.facts["kin"] = person("lindqvist", "4 quay road")
    for person_id in ("vip", "kin"):
        team(world, person_id, 1)
        world.open(person_id)
    assert sorted(world.fired()) == sorted([Rule.VIP, Rule.VIP, Rule.SAME_ADDRESS])


def test_people_whom_a_team_sees_do_not_count_as_unexplained(world):
    world.quiet_weeks()
    for number in range(8):
        world.open(f"p{number}", MONDAY + timedelta(minutes=2 * number))
    assert Rule.SEQUENCE in world.fired()
    for number in range(8):
        world.open(f"p{number}", MONDAY + timedelta(hours=5 * number), "nurse")
    assert Rule.SEQUENCE not in world.fired()


def test_somebody_who_works_elsewhere_is_no_colleague(world):
    world.community.facts["ada"] = person(employers=frozenset({"harbor"}))
    world.open("ada")
    assert world.fired() == []


def test_the_same_thing_in_one_week_is_one_key(world):
    world.community.facts["luis"] = person("ortiz")
    for days in (0, 1, 7):
        world.open("luis", MONDAY + timedelta(days=days))
    keys = [alert.key for alert in world.alerts() if alert.rule is Rule.SAME_NAME]
    assert len(keys) == 3
    assert keys[0] == keys[1] != keys[2]


# -- behaviour


def test_a_day_far_above_the_own_history_and_the_colleagues(world):
    world.quiet_weeks((ROSA, "jonas", "ada"))
    for number in range(20):
        world.open(f"stranger-{number}", MONDAY + timedelta(minutes=25 * number), explained=number < 10)
    volume = [alert for alert in world.alerts() if alert.rule is Rule.VOLUME]
    assert [alert.sentence for alert in volume] == [
        f"Opened the records of 20 people on 2 March 2026, 10 of them {LOOSE}; the own "
        "median is 5 a day, and 99 of 100 days of colleagues stay within 5."
    ]
    assert len(volume[0].person_ids) == 20


def test_a_busy_day_with_patients_of_the_house_is_no_volume(world):
    world.quiet_weeks()
    for number in range(40):
        world.open(f"patient-{number}", MONDAY + timedelta(minutes=10 * number), explained=True)
    assert world.fired() == []


def test_a_night_of_somebody_who_works_by_day(world):
    world.quiet_weeks()
    night = MONDAY.replace(hour=23)
    for number in range(3):
        world.open(f"stranger-{number}", night + timedelta(minutes=number))
    (alert,) = world.alerts()
    assert alert.rule is Rule.OFF_HOURS
    assert alert.sentence == (
        f"Opened the records of 3 people {LOOSE} between 22:00 and 06:00 on 2 March 2026; "
        "0% of the own accesses in the last 90 days fell in those hours."
    )


def test_a_night_of_somebody_who_works_at_night_or_elsewhere_in_the_world(world):
    world.quiet_weeks(hour=23)
    for number in range(3):
        world.open(f"stranger-{number}", MONDAY.replace(hour=23) + timedelta(minutes=number))
    assert world.fired() == []
    day = World()
    day.quiet_weeks()
    for number in range(3):
        day.open(f"stranger-{number}", MONDAY.replace(hour=23) + timedelta(minutes=number))
    assert day.fired(time_zone="America/Los_Angeles") == []  # 15:00 there


def test_searching_without_opening(world):
    world.quiet_weeks(searches=5)
    for number in range(10):
        for shown in range(3):
            world.open(
                f"found-{number}-{shown}", MONDAY + timedelta(minutes=9 * number), search=True, request=f"s{number}"
            )
    world.open("found-0-0", MONDAY + timedelta(hours=3), explained=True)
    (alert,) = world.alerts()
    assert alert.rule is Rule.SEARCH_ONLY
    assert alert.sentence == (
        "Searched 10 times on 2 March 2026, which showed 30 people, and opened the records of 1; usually 100% of the "
        "own searches lead to a record."
    )


def test_a_clerk_who_always_searches_alone_is_not_flagged_for_it(world):
    for days in range(30, -1, -1):
        for number in range(10):
            world.open(f"p-{days}-{number}", MONDAY - timedelta(days=days, minutes=number), search=True)
    assert world.fired() == []


def test_many_people_within_minutes(world):
    for number in range(6):
        world.open(f"stranger-{number}", MONDAY + timedelta(minutes=3 * number))
    world.open("later", MONDAY + timedelta(hours=2))
    alert = next(alert for alert in world.alerts() if alert.rule is Rule.SEQUENCE)
    assert alert.sentence == (f"Opened the records of 6 people {LOOSE} within 15 minutes on 2 March 2026.")
    assert alert.entries == (0, 1, 2, 3, 4, 5)
    assert Rule.SEQUENCE not in world.fired(sequence_minutes=10)


def test_more_unrelated_people_in_a_month_than_colleagues_have(world):
    world.quiet_weeks((ROSA, "jonas", "ada"))
    world.open("jonas-stranger", MONDAY, "jonas")
    for number in range(8):
        world.open(f"stranger-{number}", MONDAY + timedelta(days=2 * number))
    (alert,) = world.alerts()
    assert alert.rule is Rule.UNRELATED
    assert alert.sentence == (
        f"Opened the records of 8 people {LOOSE} in 30 days, of 83 in all; for colleagues "
        "at the same organization it would be 0.5."
    )
    assert len(alert.entries) == 8


def test_where_everybody_opens_unrelated_records_nobody_stands_out(world):
    actors = [ROSA, "jonas", "ada"]
    world.quiet_weeks(actors)
    for number in range(9):
        for actor in actors:
            world.open(f"{actor}-stranger-{number}", MONDAY + timedelta(days=number), actor)
    assert world.fired() == []


def test_one_person_again_and_again_without_a_reason(world):
    for days in (0, 20, 40):
        world.open("stranger", MONDAY + timedelta(days=days))
    (alert,) = world.alerts()
    assert alert.rule is Rule.REPEATED
    assert alert.sentence == (f"Opened the records of one person on 3 days since 2 March 2026, each time {LOOSE}.")
    assert alert.entries == (0, 1, 2)
    assert world.fired(history_days=30) == []


def test_one_night_has_two_dates(world):
    world.quiet_weeks()
    world.open("stranger-1", MONDAY.replace(hour=23))
    world.open("stranger-2", MONDAY.replace(hour=2) + timedelta(days=1))
    (alert,) = world.alerts()
    assert (alert.rule, alert.person_ids) == (Rule.OFF_HOURS, ("stranger-1", "stranger-2"))
    world.touches.pop()
    assert world.fired() == []


def test_history_is_forgotten_after_its_time(world):
    world.quiet_weeks(before=MONDAY - timedelta(days=95))
    for number in range(3):
        world.open(f"stranger-{number}", MONDAY.replace(hour=23) + timedelta(minutes=number))
    assert world.fired() == []  # too little is known of her to call the night unusual
    assert Rule.OFF_HOURS in world.fired(history_days=200)


# -- settings


def test_thresholds_come_from_the_environment():
    given = {
        "HIE_REVIEW_VOLUME_MIN": "30",
        "HIE_REVIEW_RARE_NAME_SHARE": "0.01",
        "HIE_REVIEW_TIME_ZONE": "Europe/Paris",
    }
    found = Thresholds.load(given)
    assert (found.volume_min, found.rare_name_share, found.time_zone) == (30, 0.01, "Europe/Paris")
    assert found.night_start == Thresholds().night_start
    assert Thresholds.load({}) == Thresholds()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("VOLUME_MIN", "many", "HIE_REVIEW_VOLUME_MIN must be a whole number."),
        ("VOLUME_MIN", "-1", "HIE_REVIEW_VOLUME_MIN must not be negative."),
        ("OFF_HOURS_SHARE", "5%", "HIE_REVIEW_OFF_HOURS_SHARE must be a number."),
        ("TIME_ZONE", "Mars/Olympus", "HIE_REVIEW_TIME_ZONE must be a time zone such as America/New_York."),
    ],
)
def test_a_wrong_threshold_is_told_in_one_line(name, value, sentence):
    with pytest.raises(ConfigurationError, match=sentence.replace(".", r"\.")):
        Thresholds.load({f"HIE_REVIEW_{name}": value})
