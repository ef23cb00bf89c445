"""CONSENT.md sections 3 to 5 once more: slow, literal, on plain FHIR JSON, sharing no code with hie.consent.

A consent is the resource itself, a path is the list of provisions from the root, and nothing is prepared, inherited
or remembered. Where the text says "no in a permit, yes in a deny" of what cannot be known, the node meant is the last
of the path; confidentiality goes by the node that states it.
"""

import calendar
import re
from datetime import UTC, datetime, timedelta

PERMIT, DENY, NOT_APPLICABLE = "permit", "deny", "not-applicable"

ABOVE = {
    "ETREAT": "TREAT",
    "CAREMGT": "TREAT",
    "COC": "TREAT",
    "CLINTRCH": "HRESCH",
    "CLINTRCHNPC": "CLINTRCH",
    "COVERAGE": "HPAYMT",
    "FAMRQT": "PATRQT",
}
V3_PURPOSES = {*ABOVE, "TREAT", "HPAYMT", "HOPERAT", "HRESCH", "PATRQT", "PUBHLTH", "BTG", "HMARKT"}
LABEL_ABOVE = {
    "MH": "PSY",
    "PSYTHPN": "PSY",
    "PSY": "BH",
    "ETHUD": "ETH",
    "OPIOIDUD": "ETH",
    "42CFRPart2": "ETH",
    "ETH": "BH",
    "HIV": "STD",
}
ORDER = "ULMNRV"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
ACT_REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
ELEMENTS = {
    "id",
    "type",
    "period",
    "actor",
    "action",
    "securityLabel",
    "purpose",
    "class",
    "code",
    "dataPeriod",
    "data",
}


def decide(consents, request, view, *, default, member_defaults, part2, people, strict=False):
    """(permit, rule) of section 5; `consents` are current FHIR resources, `people` the person's ids."""
    purposes = set(request.purposes)
    broken = "BTG" in purposes
    purposes.discard("BTG")
    if broken and not any(below("TREAT", p) for p in purposes):
        purposes.add("TREAT")
    if not purposes:
        return False, "purpose"
    verdicts = []
    for purpose in sorted(purposes):
        asked = {purpose, "BTG"} if broken and below("TREAT", purpose) else {purpose}
        verdicts.append(for_purpose(consents, request, asked, view, default, member_defaults, part2, people, strict))
    refused = [v for v in verdicts if not v[0]]
    return refused[0] if refused else (True, {rule for _, rule in verdicts})


def for_purpose(consents, request, asked, view, default, member_defaults, part2, people, strict):
    # Section 5 goes by what is said of the resource itself, not by what came along references.
    label_codes = {code for system, code in view.labels - view.reached if system != CONFIDENTIALITY}
    notes = "PSYTHPN" in label_codes
    # 2. the patient
    own = any(below("PATRQT", p) for p in asked) and any(f"Patient/{p}" in request.actors for p in people)
    if own and not notes:
        return True, "patient"
    # 3. roles and purposes
    role = request.role.value
    if role not in ("member", "clinician", "payer", "patient"):
        return False, "role"
    pays = any(below("HPAYMT", p) for p in asked)
    if (role == "payer" and not pays) or (role == "patient" and not own):
        return False, "role"
    if "self-pay-restricted" in label_codes and (pays or role == "payer"):
        return False, "self-pay"
    if role == "payer" and view.type not in ("Coverage", "ExplanationOfBenefit"):
        return False, "payer"
    # 4 and 5: what the consents say
    said = [(consent, *evaluate(consent, request, asked, view)) for consent in that_count(consents, request, view)]
    denials = [(nodes, consent) for consent, effect, nodes in said if effect == DENY]
    permits = [(nodes, consent) for consent, effect, nodes in said if effect == PERMIT]
    if notes and not any("PSYTHPN" in names(path) for nodes, _ in permits for path in nodes):
        return False, "psychotherapy-notes"
    is_part2 = view.member_id in part2 or "42CFRPart2" in label_codes
    covered = [c for nodes, c in permits if not is_part2 or covers_part2(c, nodes, view, part2)]
    closed = notes or any(
        code in ("BTG", "ETREAT")
        for nodes, _ in denials
        for path in nodes
        for code in [c.get("code") for c in path[-1].get("purpose", []) if c.get("system") == ACT_REASON]
    )
    glass = request.break_glass and "BTG" in asked and role in ("member", "clinician")
    if is_part2 and not covered:
        rule = "part2"
    elif denials:
        rule = "consent"
    elif covered:
        return True, "consent"
    else:
        # 6. defaults
        rule, closed = "default", False
        chosen = member_defaults.get(view.member_id, default)
        allowed = {"normal": ["TREAT", "HPAYMT", "HOPERAT"], "permit": ["TREAT", "HPAYMT", "HOPERAT"]}
        allowed["treatment"] = ["TREAT"]
        if any(below(top, p) for top in allowed.get(chosen, []) for p in asked):
            return True, "default"
        if chosen == "break-glass-only" and glass:
            return True, "default"
    # 7. break-glass
    if glass and not closed and not strict:
        return True, "break-glass"
    return False, rule


def names(path):
    """Label codes of the nearest node that states any data criterion."""
    node = stating(path, ("securityLabel", "class", "code", "dataPeriod", "data"))
    return [c.get("code") for c in (node or {}).get("securityLabel", []) if c.get("system") == ACT_CODE]


def covers_part2(consent, nodes, view, part2):
    concepts = [consent.get("scope", {}), consent.get("policyRule", {}), *consent.get("category", [])]
    if any(c.get("code") == "42CFRPart2" for concept in concepts for c in concept.get("coding", [])):
        return True
    if any(set(names(path)) & {"42CFRPart2", "ETH", "ETHUD", "OPIOIDUD"} for path in nodes):
        return True
    return view.member_id in part2 and {"reference": f"Organization/{view.member_id}"} in consent.get(
        "organization", []
    )


# -- section 4


def that_count(consents, request, view):
    chosen, doubted = [], []
    for custodian in (None, view.member_id):
        for scope in ("patient-privacy", "research"):
            group = [
                c
                for c in consents
                if c["status"] == "active"
                and scope_of(c) == scope
                and custodian in custodians(c)
                and instants(c["dateTime"])[0] <= request.now
            ]
            for consent in group:
                last = instants(consent["dateTime"])[1]
                newer = [c for c in group if instants(c["dateTime"])[0] > last]
                if not newer and consent not in chosen:
                    chosen.append(consent)
                elif newer and all(unverified(c) for c in newer):
                    doubted.append(consent)
    # Taking back what another denies would be a permit, and those of an unverified one do not count.
    doubted = [c for k, c in enumerate(doubted) if c not in chosen and c not in doubted[:k]]
    return [*chosen, *({**c, "verification": [{"verified": False}]} for c in doubted)]


def scope_of(consent):
    concepts = [consent.get("scope", {}), *consent.get("category", [])]
    codes = [c.get("code") for concept in concepts for c in concept.get("coding", [])]
    return next((s for s in ("patient-privacy", "research") if s in codes), None)


def unverified(consent):
    return any(v["verified"] is False for v in consent.get("verification", []))


def custodians(consent):
    named = [r["reference"].removeprefix("Organization/") for r in consent.get("organization", [])]
    return {None if n == "exchange" else n for n in named} or {None}


# -- section 3


def evaluate(consent, request, asked, view):
    """(effect, paths of the nodes that decided)."""
    if scope_of(consent) == "research" and not any(below("HRESCH", p) for p in asked):
        return NOT_APPLICABLE, []
    root = dict(consent.get("provision", {}))
    if "type" not in root:
        codes = [c.get("code") for c in consent.get("policyRule", {}).get("coding", [])]
        if any(c.startswith("OPTOUT") or c in ("NOCONSENT", "EMRGONLY") for c in codes):
            root["type"] = DENY
            if "EMRGONLY" in codes:
                exception = {"type": PERMIT, "purpose": [{"system": ACT_REASON, "code": "BTG"}]}
                root["provision"] = [*root.get("provision", []), exception]
        elif any(c.startswith("OPTIN") for c in codes):
            root["type"] = PERMIT
        else:
            return NOT_APPLICABLE, []
    asking = Asking(request, asked, view)
    effect, paths = asking.evaluate(with_types(root, root["type"]))
    if effect == PERMIT and unverified(consent):
        return NOT_APPLICABLE, []
    return effect, paths


def with_types(node, effect):
    children = []
    for child in node.get("provision", []):
        opposite = DENY if effect == PERMIT else PERMIT
        children.append(with_types(child, child.get("type", opposite)))
    return {**node, "type": effect, "provision": children}


def stating(path, criteria):
    for node in reversed(path):
        if any(criterion in node for criterion in criteria):
            return node
    return None


class Asking:
    def __init__(self, request, asked, view):
        self.request, self.asked, self.view = request, asked, view

    def evaluate(self, root):
        if "period" in root and not self.covers_now(root["period"]):
            return NOT_APPLICABLE, []
        effect, paths = self.deepest([root])
        if effect:
            return effect, paths
        if not self.context([root]):
            return NOT_APPLICABLE, []
        if self.data([root]):
            return root["type"], [[root]]
        return (DENY, [[root]]) if root["type"] == PERMIT else (NOT_APPLICABLE, [])

    def deepest(self, path):
        found = []
        for child in path[-1]["provision"]:
            below_here = [*path, child]
            if self.apply(below_here):
                effect, paths = self.deepest(below_here)
                found.append((effect, paths) if effect else (child["type"], [below_here]))
        for wanted in (DENY, PERMIT):
            paths = [p for effect, ps in found if effect == wanted for p in ps]
            if paths:
                return wanted, paths
        return None, []

    def apply(self, path):
        return self.context(path) and self.data(path) and (len(path) <= 2 or self.apply(path[:-1]))

    def context(self, path):
        effect = path[-1]["type"]
        if effect == PERMIT and any(unknown_in(node) for node in path):
            return False
        for criterion in ("actor", "purpose", "action", "period"):
            node = stating(path, [criterion])
            if node is None:
                continue
            if effect == DENY and foreign(node[criterion]):
                continue
            if not getattr(self, criterion)(node[criterion], effect):
                return False
        return True

    def data(self, path):
        effect = path[-1]["type"]
        node = stating(path, ("securityLabel", "class", "code", "dataPeriod", "data"))
        if node is None:
            return True
        for criterion in ("securityLabel", "class", "code", "dataPeriod", "data"):
            if criterion not in node or (effect == DENY and foreign(node[criterion])):
                continue
            matches = getattr(self, "its_" + criterion)
            if not matches(node[criterion], effect, node["type"]):
                return False
        return True

    # each criterion: whether any of its values matches, with `effect` for what cannot be known

    def actor(self, actors, effect):
        return any(self.one_actor(actor, effect) for actor in actors)

    def one_actor(self, actor, effect):
        keys = keys_of(actor["reference"])
        role = actor["role"]["coding"][0]["code"] if actor.get("role") else "IRCP"
        if not keys or role not in ("IRCP", "PRCP", "CST", "AUT"):
            return effect == DENY
        there = {
            "CST": {f"Organization/{self.view.member_id}", self.view.member_id},
            "AUT": self.view.authors,
        }.get(role, {a.lower() if "@" in a else a for a in self.request.actors})
        return bool(keys & there)

    def purpose(self, purposes, effect):
        for coding in purposes:
            if coding["system"] != ACT_REASON and coding["code"] in V3_PURPOSES:
                if effect == DENY:
                    return True
            elif any(below(coding["code"], p) for p in self.asked):
                return True
        return False

    def action(self, actions, effect):
        return any(c["code"] in ("access", "disclose", "use") for a in actions for c in a["coding"])

    def period(self, period, effect):
        return self.covers_now(period)

    def covers_now(self, period):
        return overlap(period, (self.request.now, self.request.now))

    def its_securityLabel(self, codings, effect, stated_in):  # noqa: N802
        return any(self.one_label(c["system"], c["code"], effect, stated_in) for c in codings)

    def one_label(self, system, code, effect, stated_in):
        if system == CONFIDENTIALITY:
            mine, theirs = ORDER.index(code), ORDER.index(confidentiality(self.view))
            return mine >= theirs if stated_in == PERMIT else mine <= theirs
        carried = {c for s, c in self.view.labels if s == ACT_CODE}
        return any(code in chain(c, LABEL_ABOVE) for c in carried) or (effect == DENY and not self.view.labels_known)

    def its_class(self, codings, effect, stated_in):
        return any(c["code"] == self.view.type or c["code"] in self.view.profiles for c in codings)

    def its_code(self, concepts, effect, stated_in):
        codings = [(c["system"], c["code"]) for concept in concepts for c in concept.get("coding", [])]
        if any(coding in self.view.codes for coding in codings):
            return True
        return effect == DENY and any("coding" not in concept for concept in concepts)

    def its_dataPeriod(self, period, effect, stated_in):  # noqa: N802
        if self.view.time is None:
            return effect == DENY
        return overlap(period, (self.view.time.start, self.view.time.end))

    def its_data(self, items, effect, stated_in):
        return any(self.one_datum(i["meaning"], i["reference"], effect) for i in items)

    def one_datum(self, meaning, reference, effect):
        keys = keys_of(reference)
        if not keys:
            return effect == DENY
        if meaning == "authoredby":
            return bool(keys & self.view.authors)
        this = f"{self.view.type}/{self.view.id}" in keys
        return this or (meaning in ("related", "dependents") and bool(keys & self.view.references))


def unknown_in(node):
    contained = [a for a in node.get("actor", []) if a["reference"].get("reference", "").startswith("#")]
    here = {k: v for k, v in node.items() if k != "provision"}
    return bool(contained) or bool(here.keys() - ELEMENTS) or foreign(here)


def foreign(value):
    if isinstance(value, dict):
        return "extension" in value or any(foreign(v) for v in value.values())
    return isinstance(value, list) and any(foreign(v) for v in value)


def keys_of(reference):
    literal = reference.get("reference", "")
    keys = {literal} if re.fullmatch(r"[A-Z]\w+/[\w.-]+", literal) else set()
    value = reference.get("identifier", {}).get("value")
    return keys | ({value.lower() if "@" in value else value} if value else set())


def confidentiality(view):
    given = [code for system, code in view.labels if system == CONFIDENTIALITY]
    if not view.labels_known:
        return max([*given, "R"], key=ORDER.index)
    if given:
        return max(given, key=ORDER.index)
    carried = {code for system, code in view.labels if system == ACT_CODE}
    return "V" if "PSYTHPN" in carried else "R" if carried else "N"


def chain(code, above):
    found = [code]
    while found[-1] in above:
        found.append(above[found[-1]])
    return found


def below(top, purpose):
    """Whether `top` equals or subsumes `purpose`."""
    return top in chain(purpose, ABOVE)


def instants(text):
    """First and last microsecond of a date, month, year or whole second in UTC."""
    if len(text) == 4:
        return datetime(int(text), 1, 1, tzinfo=UTC), datetime(int(text), 12, 31, 23, 59, 59, 999999, UTC)
    if len(text) == 7:
        year, month = int(text[:4]), int(text[5:])
        last = calendar.monthrange(year, month)[1]
        return datetime(year, month, 1, tzinfo=UTC), datetime(year, month, last, 23, 59, 59, 999999, UTC)
    first = datetime.fromisoformat(text if "T" in text else text + "T00:00:00+00:00").astimezone(UTC)
    long = timedelta(seconds=1) if "T" in text else timedelta(days=1)
    return first, first + long - timedelta(microseconds=1)


def overlap(period, span):
    start = instants(period["start"])[0] if "start" in period else None
    end = instants(period["end"])[1] if "end" in period else None
    return (start is None or span[1] is None or start <= span[1]) and (end is None or span[0] is None or span[0] <= end)
