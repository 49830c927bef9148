from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_helpers import bind_mount, needs_mount, unprivileged

from ofborg_async.errors import FaultKind, HostFault
from ofborg_async.locks import find_conflicts, identify_root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``a/in/deep`` and ``b``, with links to them."""
    tmp_path = tmp_path.resolve()
    (tmp_path / "a/in/deep").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "to-a").symlink_to("a")
    (tmp_path / "to-in").symlink_to(tmp_path / "a/in")
    return tmp_path


def why(tree: Path, first: str, second: str) -> str:
    """The words about two roots, "" when they do not conflict; the same whichever comes first."""
    found = find_conflicts([("one", tree / first), ("two", tree / second)])
    back = find_conflicts([("two", tree / second), ("one", tree / first)])
    assert len(found) == len(back) <= 1
    return found[0].why if found else ""


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ("a", "a", "are the same directory"),
        ("a", "to-a", "are the same directory"),
        ("a/in", "to-a/../b/../a/in", "are the same directory"),
        ("to-in", "a/in", "are the same directory"),
        ("a", "a/in", "are nested: that of two is inside that of one"),
        ("to-in/deep", "to-a", "are nested: that of one is inside that of two"),
        ("a/new", "to-a/new", "are the same directory"),
        ("a/new/sub", "to-a/new", "are nested: that of one is inside that of two"),
        ("a", "to-a/new/sub", "are nested: that of two is inside that of one"),
    ],
)
def test_roots_that_share_something(tree: Path, first: str, second: str, how: str) -> None:
    text = why(tree, first, second)
    assert how in text
    assert str(tree / first) in text
    assert text.startswith("the roots of one (")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "b"),
        ("a/in", "a/out"),
        ("a", "a-2"),
        ("a/new", "a/new-2"),
        ("to-a/in/deep", "b/in/deep"),
        ("new", "new2/x"),
    ],
)
def test_roots_that_share_nothing(tree: Path, first: str, second: str) -> None:
    assert why(tree, first, second) == ""


def test_a_link_is_explained(tree: Path) -> None:
    assert f"two ({tree}/to-a, which is {tree}/a)" in why(tree, "a", "to-a")


def test_every_pair_is_named(tree: Path) -> None:
    roots = [("one", tree / "a"), ("two", tree / "b"), ("three", tree / "to-a"), ("four", tree / "a/in")]
    pairs = {(conflict.first, conflict.second) for conflict in find_conflicts(roots)}
    assert pairs == {("one", "three"), ("one", "four"), ("three", "four")}


@needs_mount
def test_bind_mounts(tree: Path) -> None:
    """A bind mount has the device and inode of its source, and its own ancestors."""
    with ExitStack() as mounts:
        mounts.enter_context(bind_mount(tree / "a", tree / "bound"))
        mounts.enter_context(bind_mount(tree / "a/in/deep", tree / "bound-deep"))
        mounts.enter_context(bind_mount(tree / "bound-deep", tree / "bound-twice"))
        assert (tree / "bound").stat().st_ino == (tree / "a").stat().st_ino
        assert identify_root(tree / "bound").node == identify_root(tree / "a").node
        assert "same directory" in why(tree, "a", "bound")
        assert "same directory" in why(tree, "a/in", "bound/in")
        assert "two is inside" in why(tree, "a", "bound/in")
        # The path of the mount does not pass through "a" at all.
        assert "two is inside" in why(tree, "a", "bound-deep")
        assert "two is inside" in why(tree, "a/in", "bound-twice")
        assert "two is inside" in why(tree, "bound", "bound-twice/new")
        assert "same directory" in why(tree, "a/in/deep/new", "bound-twice/new")
        assert why(tree, "b", "bound-twice") == ""


@needs_mount
def test_a_mount_that_hides_another_does_not_confuse(tree: Path) -> None:
    with (
        bind_mount(tree / "a/in", tree / "b"),
        bind_mount(tree / "b", tree / "x"),
        bind_mount(tree / "to-a", tree / "b"),
    ):
        assert "two is inside" in why(tree, "b", "x")
        assert "same directory" in why(tree, "x", "a/in")
        assert "same directory" in why(tree, "b", "a")
    (tree / "b/m").mkdir()
    with bind_mount(tree / "a/in", tree / "b/m"):
        assert "two is inside" in why(tree, "b", "a/in")
        with bind_mount(tree / "c", tree / "b/m"):
            assert why(tree, "b", "a/in") == ""


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    with pytest.raises(HostFault, match=r"the root .*x cannot be looked at") as fault:
        identify_root(tmp_path / "x")
    assert fault.value.kind is FaultKind.PERMISSION


def test_a_parent_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with unprivileged(), pytest.raises(HostFault, match="give the daemon's user access"):
        identify_root(tmp_path / "closed/root")


NAMES = st.lists(st.sampled_from("abc"), max_size=4)


@settings(deadline=None, max_examples=60)
@given(
    made=st.lists(NAMES, max_size=5), links=st.lists(st.tuples(NAMES, NAMES), max_size=3), pair=st.tuples(NAMES, NAMES)
)
def test_conflicts_are_those_of_the_resolved_names(
    made: list[list[str]], links: list[tuple[list[str], list[str]]], pair: tuple[list[str], list[str]]
) -> None:
    """Without bind mounts the truth is plain: resolved paths, equal or one the beginning of the other."""
    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve()
        for names in made:
            top.joinpath(*names).mkdir(parents=True, exist_ok=True)
        for source, target in links:
            place = top.joinpath(*source, "link")
            if place.parent.is_dir() and not place.is_symlink():
                place.symlink_to(top.joinpath(*target), target_is_directory=True)
        paths = [top.joinpath(*names, *(["link"] if index % 2 else [])) for index, names in enumerate(pair)]
        one, two = (path.resolve() for path in paths)
        expected = one == two or one in two.parents or two in one.parents
        assert bool(find_conflicts([("one", paths[0]), ("two", paths[1])])) == expected
