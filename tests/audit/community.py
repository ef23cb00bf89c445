"""What an exchange knows of its people, as a test sets it."""

from collections import defaultdict

from hie.audit.relations import PersonFacts, UserFacts


class FakeCommunity:
    def __init__(self):
        self.known = []
        self.facts = defaultdict(PersonFacts)
        self.staff = {}
        self.shares = {}

    def contacts(self, pairs):
        return [c for c in self.known if (c.person_id, c.organization) in set(pairs)]

    def people(self, person_ids):
        return {person_id: self.facts[person_id] for person_id in person_ids}

    def users(self, actors):
        return {actor: self.staff[actor] for actor in actors if actor in self.staff}

    def family_name(self, name):
        return name.lower().split()[-1] if name else ""

    def name_share(self, family_name):
        return self.shares.get(family_name, 0.0001)


def person(family="nowak", address="1 elm st", **more):
    return PersonFacts(frozenset({family}), frozenset({address}), **more)


def user(family="ortiz", *addresses):
    return UserFacts(family, frozenset(addresses))
