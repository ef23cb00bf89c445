"""The Merkle tree held equal to RFC 6962 section 2.1 written down literally, and to its published test vectors."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hie.audit import merkle
from hie.audit.merkle import EMPTY_ROOT, Frontier, RightEdge, Tile

# -- the reference: RFC 6962 sections 2.1, 2.1.1 and 2.1.2, word for word and slow


def sha(data):
    return hashlib.sha256(data).digest()


def largest_power_below(n):
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def mth(d):
    if not d:
        return sha(b"")
    if len(d) == 1:
        return sha(b"\x00" + d[0])
    k = largest_power_below(len(d))
    return sha(b"\x01" + mth(d[:k]) + mth(d[k:]))


def path(m, d):
    if len(d) == 1:
        return []
    k = largest_power_below(len(d))
    return [*path(m, d[:k]), mth(d[k:])] if m < k else [*path(m - k, d[k:]), mth(d[:k])]


def subproof(m, d, complete):
    if m == len(d):
        return [] if complete else [mth(d)]
    k = largest_power_below(len(d))
    if m <= k:
        return [*subproof(m, d[:k], complete), mth(d[k:])]
    return [*subproof(m - k, d[k:], False), mth(d[:k])]


# -- what is held to it

leaves = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def grown(d):
    """The frontier of leaves appended one by one, and a table of every subtree this completed."""
    frontier, table = Frontier(), {}
    for leaf in d:
        frontier, made = frontier.append(merkle.leaf_hash(leaf))
        table |= {(node.level, node.index): node.hash for node in made}
    return frontier, lambda level, index: table[level, index]


@st.composite
def a_tree_and_two_sizes(draw):
    d = draw(leaves)
    new = draw(st.integers(1, len(d)))
    return d[:new], draw(st.integers(0, new))


@given(leaves)
def test_roots_are_those_of_the_rfc(d):
    frontier, nodes = grown(d)
    assert frontier.root == mth(d)
    for size in range(len(d) + 1):
        assert merkle.root(size, nodes) == mth(d[:size])
        assert Frontier.of(size, nodes).root == mth(d[:size])


@given(leaves)
def test_a_frontier_read_back_grows_on_as_before(d):
    _, nodes = grown(d)
    half = Frontier.of(len(d) // 2, nodes)
    for leaf in d[len(d) // 2 :]:
        half, _ = half.append(merkle.leaf_hash(leaf))
    assert half == grown(d)[0]


@given(leaves, st.data())
def test_inclusion_proofs_are_those_of_the_rfc_and_verify(d, data):
    index = data.draw(st.integers(0, len(d) - 1))
    proof = merkle.inclusion_proof(index, len(d), grown(d)[1])
    assert proof == path(index, d)
    assert merkle.verify_inclusion(merkle.leaf_hash(d[index]), index, len(d), proof, mth(d))


@given(a_tree_and_two_sizes())
def test_consistency_proofs_are_those_of_the_rfc_and_verify(tree):
    d, old = tree
    proof = merkle.consistency_proof(old, len(d), grown(d)[1])
    assert proof == (subproof(old, d, True) if old else [])
    assert merkle.verify_consistency(old, len(d), proof, mth(d[:old]), mth(d))


def altered(proof, data):
    """A proof with one hash changed, dropped, added or two swapped."""
    kind = data.draw(st.sampled_from(["flip", "drop", "add", "swap"] if proof else ["add"]))
    changed = list(proof)
    at = data.draw(st.integers(0, max(0, len(proof) - 1)))
    if kind == "flip":
        changed[at] = bytes([changed[at][0] ^ 1]) + changed[at][1:]
    elif kind == "drop":
        del changed[at]
    elif kind == "add":
        changed.insert(data.draw(st.integers(0, len(proof))), sha(b"stranger"))
    else:
        other = data.draw(st.integers(0, len(proof) - 1))
        changed[at], changed[other] = changed[other], changed[at]
    return changed


@given(leaves, st.data())
def test_a_false_inclusion_does_not_verify(d, data):
    index = data.draw(st.integers(0, len(d) - 1))
    proof, root, leaf = path(index, d), mth(d), merkle.leaf_hash(d[index])
    assert not merkle.verify_inclusion(sha(b"another leaf"), index, len(d), proof, root)
    assert not merkle.verify_inclusion(leaf, index, len(d), proof, sha(b"another root"))
    assert not merkle.verify_inclusion(leaf, len(d), len(d), proof, root)
    assert not merkle.verify_inclusion(leaf, -1, len(d), proof, root)
    changed = altered(proof, data)
    assert merkle.verify_inclusion(leaf, index, len(d), changed, root) == (changed == proof)


@given(a_tree_and_two_sizes(), st.data())
def test_a_false_consistency_does_not_verify(tree, data):
    d, old = tree
    proof, old_root, new_root = (subproof(old, d, True) if old else []), mth(d[:old]), mth(d)
    assert not merkle.verify_consistency(old, len(d), proof, sha(b"another"), new_root)
    changed = altered(proof, data)
    assert merkle.verify_consistency(old, len(d), changed, old_root, new_root) == (changed == proof)
    if old > 0:
        assert not merkle.verify_consistency(old, len(d), proof, old_root, sha(b"another"))
    assert not merkle.verify_consistency(len(d) + 1, len(d), proof, old_root, new_root)


@given(st.lists(st.binary(max_size=4), min_size=2, max_size=40, unique=True), st.data())
def test_a_history_that_was_changed_has_no_proof(d, data):
    """One old leaf edited: the old root is no longer that of any prefix, whatever proof the log makes up."""
    old = data.draw(st.integers(1, len(d)))
    edited = list(d)
    edited[data.draw(st.integers(0, old - 1))] = b"edited afterwards"
    proof = merkle.consistency_proof(old, len(d), grown(edited)[1])
    assert not merkle.verify_consistency(old, len(d), proof, mth(d[:old]), mth(edited))


VECTORS = [  # of certificate-transparency: the leaves, and the root of the first n of them
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
    (
        "606162636465666768696a6b6c6d6e6f",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ),
]


def test_the_published_vectors():
    frontier = Frontier()
    assert frontier.root.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for leaf, root in VECTORS:
        frontier, _ = frontier.append(merkle.leaf_hash(bytes.fromhex(leaf)))
        assert frontier.root.hex() == root


NODE = {  # of the tree over those leaves: (level, index), as transparency-dev publishes its proofs
    (0, 0): "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    (0, 1): "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    (0, 4): "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    (1, 0): "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    (1, 1): "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    (1, 2): "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    (1, 3): "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    (2, 0): "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    (2, 1): "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
}


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (0, 1, []),
        (0, 8, [(0, 1), (1, 1), (2, 1)]),
        (5, 8, [(0, 4), (1, 3), (2, 0)]),
        (2, 3, [(1, 0)]),
        (1, 5, [(0, 0), (1, 1), (0, 4)]),
    ],
)
def test_the_published_inclusion_proofs(index, size, proof):
    _, nodes = grown([bytes.fromhex(leaf) for leaf, _ in VECTORS])
    assert [hash_.hex() for hash_ in merkle.inclusion_proof(index, size, nodes)] == [NODE[place] for place in proof]


@pytest.mark.parametrize(
    ("old", "new", "proof"),
    [
        (1, 1, []),
        (1, 8, [(0, 1), (1, 1), (2, 1)]),
        (6, 8, [(1, 2), (1, 3), (2, 0)]),
        (2, 5, [(1, 1), (0, 4)]),
    ],
)
def test_the_published_consistency_proofs(old, new, proof):
    _, nodes = grown([bytes.fromhex(leaf) for leaf, _ in VECTORS])
    assert [hash_.hex() for hash_ in merkle.consistency_proof(old, new, nodes)] == [NODE[place] for place in proof]


def test_questions_without_an_answer_are_refused():
    _, nodes = grown([b"a", b"b"])
    for index, size in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="index"):
            merkle.inclusion_proof(index, size, nodes)
    with pytest.raises(ValueError, match="shrink"):
        merkle.consistency_proof(2, 1, nodes)
    with pytest.raises(ValueError, match="each bit"):
        Frontier(3, (EMPTY_ROOT,))


# -- the right edge


def edge_of(d):
    edge = RightEdge()
    edge.extend(merkle.leaf_hash(leaf) for leaf in d)
    return edge


@given(leaves, st.integers(1, 7))
def test_the_right_edge_has_the_roots_of_the_reference(d, at_once):
    edge = RightEdge()
    assert edge.root == mth([])
    for start in range(0, len(d), at_once):
        edge.extend(merkle.leaf_hash(leaf) for leaf in d[start : start + at_once])
        assert edge.root == mth(d[: edge.size])
    assert edge.size == len(d)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 66_000])
def test_the_right_edge_gives_the_tiles_and_goes_on_from_what_is_stored(size):
    d = [str(number).encode() for number in range(size)]
    frontier, nodes = grown(d)
    edge = edge_of(d)
    assert edge.root == frontier.root
    full = {done.tile: done.hashes for done in edge.full}
    assert full == {tile: tile.content(nodes) for tile in merkle.tiles(size) if tile.width == 256}
    assert {done.root for done in edge.full} == {nodes(8 * t.level + 8, t.index) for t in full}
    again = RightEdge(size, edge.rows)
    assert again.root == edge.root
    copied = edge.copy()
    for other in (again, copied):
        other.extend([sha(b"one more")])
        assert other.size == size + 1
    assert again.root == copied.root != edge.root
    assert edge.size == size


def test_a_right_edge_with_hashes_missing_is_refused():
    rows = edge_of([b"leaf"] * 300).rows
    for size, wrong in ((300, rows[:1]), (300, [rows[0][:-1], rows[1]]), (301, rows), (300, [])):
        with pytest.raises(ValueError, match="right edge"):
            RightEdge(size, wrong)


# -- tiles


@pytest.mark.parametrize(
    ("tile", "written"),
    [
        (Tile(0, 0), "0/000"),
        (Tile(1, 67, 5), "1/067.p/5"),
        (Tile(0, 1234067), "0/x001/x234/067"),
        (Tile(2, 999_000, 255), "2/x999/000.p/255"),
        (Tile(63, 1000), "63/x001/000"),
    ],
)
def test_tiles_are_named_as_c2sp_says(tile, written):
    assert tile.path == written
    assert Tile.parse(written) == tile


@pytest.mark.parametrize(
    "written",
    [
        "",
        "0/0",
        "0/0000",
        "0/x000/001",
        "0/000.p/0",
        "0/000.p/256",
        "0/000.p/07",
        "64/000",
        "00/000",
        "0/../000",
        "0/٠٠٠",
    ],
)
def test_other_spellings_are_no_tile(written):
    assert Tile.parse(written) is None


def test_a_tree_has_its_tiles_and_no_others():
    assert list(merkle.tiles(0)) == []
    assert list(merkle.tiles(256)) == [Tile(0, 0), Tile(1, 0, 1)]
    assert list(merkle.tiles(70_000))[-3:] == [Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert Tile(0, 1, 44).within(300)
    assert Tile(0, 1, 3).within(300)
    assert not Tile(0, 1, 45).within(300)
    assert not Tile(1, 0, 2).within(300)
    assert not Tile(0, 2, 1).within(300)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600])
def test_proofs_from_tiles_are_proofs_from_nodes(size):
    d = [str(number).encode() for number in range(size)]
    frontier, nodes = grown(d)
    stored = {tile: tile.content(nodes) for tile in merkle.tiles(size)}
    assert all(len(content) == 32 * tile.width for tile, content in stored.items())
    from_tiles = merkle.nodes_of_tiles(size, stored.__getitem__)
    assert merkle.root(size, from_tiles) == frontier.root
    for index in {0, size // 3, size - 1}:
        assert merkle.inclusion_proof(index, size, from_tiles) == merkle.inclusion_proof(index, size, nodes)
        assert merkle.consistency_proof(index, size, from_tiles) == merkle.consistency_proof(index, size, nodes)
