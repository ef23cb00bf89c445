import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from hie.core.errors import ConfigurationError
from hie.core.master_key import FILE, MasterKey


def test_the_key_is_made_once_whoever_comes_first(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        derived = {key.derive("x") for key in pool.map(lambda _: MasterKey.load(tmp_path), range(64))}
    assert len(derived) == 1
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_uses_have_different_keys(tmp_path):
    key = MasterKey.load(tmp_path)
    assert key.derive("a") != key.derive("b")
    assert len(key.derive("a")) == 32


@pytest.mark.parametrize("content", ["", "zz", "ab" * 16])
def test_a_damaged_key_file_stops_with_a_sentence(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ConfigurationError, match=FILE):
        MasterKey.load(tmp_path)
