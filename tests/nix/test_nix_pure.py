"""The parts of nix/ that do no I/O: command lines, links, noise, strategy, faults and verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ofborg_async.errors import FaultKind
from ofborg_async.model.identity import NixSettings
from ofborg_async.model.job import Subset
from ofborg_async.model.result import BuildStatus, Status, UnexpectedError
from ofborg_async.nix import argv, links, strategy
from ofborg_async.nix.environment import nix_environment, places_of_builds
from ofborg_async.nix.faults import fault_in, fault_of_signal
from ofborg_async.nix.noise import has_printed, printed_again, without_restricted
from ofborg_async.nix.verdict import Watch, gravest, status_of

SETTINGS = NixSettings(systems=("x86_64-linux",), build_timeout_seconds=1234)
DRV = "/nix/store/5nnkpliwv687hcgjnxy68q5svnksc00r-ok.drv"


class TestEnvironment:
    def test_exactly_the_originals(self) -> None:
        assert nix_environment(SETTINGS, Path("/w/tree"), "/usr/bin:/bin") == {
            "HOME": "/homeless-shelter",
            "NIX_PATH": "ofborg-nixpkgs-pr=/w/tree",
            "NIX_REMOTE": "",
            "PATH": "/usr/bin:/bin",
        }

    def test_heap_size_and_the_configured_table_are_added(self) -> None:
        settings = NixSettings(
            systems=(), remote="daemon", initial_heap_size="2g", environment={"NIX_CONF_DIR": "/c", "PATH": "/p"}
        )
        assert nix_environment(settings, Path("/t"), "/bin") == {
            "HOME": "/homeless-shelter",
            "NIX_PATH": "ofborg-nixpkgs-pr=/t",
            "NIX_REMOTE": "daemon",
            "PATH": "/p",
            "GC_INITIAL_HEAP_SIZE": "2g",
            "NIX_CONF_DIR": "/c",
        }

    @pytest.mark.parametrize(
        ("remote", "store"),
        [
            ("", "/nix/store"),
            ("daemon", "/nix/store"),
            ("local?root=/lab/store&x=y", "/lab/store/nix/store"),
            ("/chroot", "/chroot/nix/store"),
        ],
    )
    def test_where_builds_write(self, remote: str, store: str) -> None:
        assert places_of_builds(NixSettings(systems=(), remote=remote))[0] == Path(store)


class TestArgv:
    def test_original_form(self) -> None:
        assert argv.instantiate_original(SETTINGS, "i686-linux", None, "a.b", None) == (
            *("nix-instantiate", "--option", "extra-experimental-features", "no-url-literals", "--show-trace"),
            *("--option", "restrict-eval", "true", "--option", "build-timeout", "1234"),
            *("--argstr", "system", "i686-linux", "--arg", "supportedSystems", '["i686-linux"]'),
            *("./default.nix", "-A", "a.b"),
        )

    def test_the_nixos_subset_has_its_file_and_argument(self) -> None:
        words = argv.build_original(SETTINGS, "x86_64-linux", Subset.NIXOS, ["a", "b"])
        assert words[-5:] == ("./nixos/release.nix", "-A", "a", "-A", "b")
        assert words[words.index("nixpkgs") + 1].startswith('{ outPath=./.; revCount=999999; shortRev="ofborg";')

    @pytest.mark.parametrize(
        "attr", ["", '"', '""', '""""', "-A", "--option", "a\0b", "a\nb", "a\tb", "\x7f", "x" * 4097, "\udc80"]
    )
    def test_refused(self, attr: str) -> None:
        assert argv.refusal(attr)

    @pytest.mark.parametrize("attr", ["a", "a-b", '"a b".c', "ünï", "0", "a.", ".", "$(x)", "x" * 4096])
    def test_not_refused(self, attr: str) -> None:
        assert argv.refusal(attr) is None

    @given(st.text(max_size=30))
    def test_what_is_not_refused_can_be_an_argument(self, attr: str) -> None:
        if argv.refusal(attr) is None:
            words = argv.instantiate_shared(SETTINGS, "s", None, [attr], "/r/d", "n")
            assert all("\0" not in word for word in words)
            assert not attr.startswith("-")
            assert attr.encode()

    def test_a_hostile_system_stays_a_string(self) -> None:
        words = argv.instantiate_original(SETTINGS, 'x"] ++ [${1}\\', None, "a", None)
        assert words[words.index("supportedSystems") + 1] == '["x\\"] ++ [\\${1}\\\\"]'

    @given(st.lists(st.text("abcdef", max_size=40), max_size=60), st.integers(40, 400))
    def test_batches_keep_all_in_order_within_the_limit(self, words: list[str], limit: int) -> None:
        batches = list(argv.batches(words, limit))
        assert [word for batch in batches for word in batch] == words
        assert all(len(batch) == 1 or sum(len(word) + 21 for word in batch) <= limit for batch in batches)
        assert all(batches)


class TestStrategy:
    @given(st.lists(st.integers(1, 5000), max_size=300), st.integers(1, 70))
    def test_parts_are_runs_of_neighbours_within_the_limit(self, sizes: list[int], parallel: int) -> None:
        parts = strategy.parts(sizes, parallel, 6000)
        assert [index for part in parts for index in part] == list(range(len(sizes)))
        assert all(len(part) >= 1 and sum(sizes[index] for index in part) <= 6000 for part in parts)

    @pytest.mark.parametrize(
        ("attrs", "parallel", "expected"),
        [
            (1, 2, [1]),
            (4, 2, [4]),
            (5, 2, [2, 3]),
            (20, 2, [10, 10]),
            (20, 16, [4, 4, 4, 4, 4]),
            (7, 1, [7]),
            (0, 2, []),
        ],
    )
    def test_spread(self, attrs: int, parallel: int, expected: list[int]) -> None:
        assert [len(part) for part in strategy.parts([30] * attrs, parallel)] == expected


class TestLinks:
    TARGETS: ClassVar = {"/r/d": DRV, "/r/d-2": DRV.replace("ok", "two"), "/r/d-3": "/nix/store/x"}

    def parse(self, stdout: bytes) -> tuple[str, ...] | None:
        def target(link: str) -> str:
            if link not in self.TARGETS:
                raise FileNotFoundError(link)
            return self.TARGETS[link]

        return links.derivations(stdout, "/r/d", target)

    def test_links_with_outputs(self) -> None:
        assert self.parse(b"/r/d!dev\n/r/d-2\n") == (f"{DRV}!dev", DRV.replace("ok", "two") + "!out")

    def test_nothing(self) -> None:
        assert self.parse(b"") == ()

    def test_a_store_elsewhere_prints_the_derivations(self) -> None:
        assert self.parse(f"{DRV}\n{DRV}!lib\n".encode()) == (f"{DRV}!out", f"{DRV}!lib")

    @pytest.mark.parametrize(
        "stdout",
        [
            b"/r/d",  # cut
            b"/r/d!a\nb\n",  # an output's name with a newline
            b"/r/d!a b\n",
            b"/r/d!\n",
            b"/r/d-2\n",  # not the first
            b"/r/d\n/r/d\n",
            b"/r/d\n/r/d-2\n/r/d-3\n",  # points to no derivation
            b"/r/d\n/r/d-2\n/r/d-4\n",
            b"/nix/store/5nnkpliwv687hcgjnxy68q5svnksc00r-ok\n",
            b"\xff\n",
            b"\n",
        ],
    )
    def test_anything_else_is_not_believed(self, stdout: bytes) -> None:
        assert self.parse(stdout) is None

    @given(st.one_of(st.binary(max_size=200), st.text("/rd-2!.drv\nnixstoreab0", max_size=200).map(str.encode)))
    def test_any_output_gives_arguments_of_the_right_shape_or_none(self, stdout: bytes) -> None:
        found = self.parse(stdout)
        assert found is None or all(".drv!" in one and "\n" not in one and one.startswith("/") for one in found)


class TestNoise:
    OLD = (
        b"warning: ignoring the user-specified setting 'build-timeout', because it is a restricted setting"
        b" and you are not a trusted user"
    )
    NEW = OLD.replace(b"user-specified", b"client-specified")

    def test_restricted_settings_are_left_out_in_both_wordings(self) -> None:
        assert without_restricted([b"a", self.OLD, b"", self.NEW, b"b"]) == [b"a", b"", b"b"]

    def test_nothing_else_is(self) -> None:
        lines = [b"echo: " + self.OLD, self.OLD + b"!", b"warning: the -specified setting ' is here"]
        assert without_restricted(lines) == lines

    def test_what_is_printed_again(self) -> None:
        traces = [b"trace: two", b"lines"]
        assert printed_again(traces) == traces
        imports = [b"this derivation will be built:", b"building '/nix/store/x.drv'...", b"its output"]
        assert printed_again([*imports, *traces, b"warning: w"]) == [b"trace: two", b"warning: w"]
        assert printed_again([imports[0], b"  /nix/store/x.drv", b"waiting for locks or build slots..."]) == []

    def test_what_counts_as_printed(self) -> None:
        about_the_process = [
            self.OLD,
            b"warning: unknown experimental feature 'no-url-literals'",
            b"warning: $HOME ('/homeless-shelter') is not owned by you, falling back to the one defined in ...",
            b"warning: error: SQLite database '/nix/var/nix/db/db.sqlite' is busy",
        ]
        assert not has_printed(about_the_process)
        assert has_printed([*about_the_process, b"trace: x"])
        assert has_printed([b"evaluation warning: old"])
        assert has_printed([b""])


class TestFaults:
    @pytest.mark.parametrize(
        ("line", "kind"),
        [
            (b"error: writing to file: No space left on device", FaultKind.DISK),
            (b"       error: database or disk is full (in '/nix/var/nix/db/db.sqlite')", FaultKind.DISK),
            (b"error: out of memory", FaultKind.MEMORY),
            (b"error: unable to fork: Cannot allocate memory", FaultKind.MEMORY),
            (
                b"error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused",
                FaultKind.NIX_DAEMON,
            ),
            (b"error: unexpected end-of-file", FaultKind.NIX_DAEMON),
            (b"error: Nix daemon disconnected unexpectedly (maybe it crashed?)", FaultKind.NIX_DAEMON),
            (b"error: reading from file: Connection reset by peer", FaultKind.NIX_DAEMON),
            (b"error: executing SQLite query 'begin': database is locked", FaultKind.NIX_DAEMON),
            (b"error: unable to fork: Resource temporarily unavailable", FaultKind.PROCESS),
            (b"error: interrupted by the user", FaultKind.PROCESS),
            (b"error: home directory '/homeless-shelter' exists; please remove it", FaultKind.PERMISSION),
            (b"error: cannot set host name: Operation not permitted", FaultKind.PERMISSION),
            (b"error: while setting up the build environment: unable to bind /dev", FaultKind.PERMISSION),
            (b"error: unable to make filesystem '/' private: Operation not permitted", FaultKind.PERMISSION),
            (b"error: remounting /nix/store writable: Invalid argument", FaultKind.PERMISSION),
            (b"error: creating directory '/nix/store/.links': Permission denied", FaultKind.PERMISSION),
            (b"error: opening lock file '/nix/store/x-hello.lock': Permission denied", FaultKind.PERMISSION),
            (b"error: creating symlink from '/s/nix/var/nix/gcroots/profiles' to '/x': File exists", FaultKind.OTHER),
        ],
    )
    def test_texts(self, line: bytes, kind: FaultKind) -> None:
        fault = fault_in(line)
        assert fault is not None
        assert fault.kind is kind

    @pytest.mark.parametrize(
        "line",
        [
            b"error: this package is broken on purpose",
            b"No space left on device",
            b"       > error: No space left on device",
            b'          18|   x = throw "error: out of memory";',
            b"",
        ],
    )
    def test_other_lines(self, line: bytes) -> None:
        assert fault_in(line) is None

    def test_signals(self) -> None:
        killed, ended = fault_of_signal("nix-build", -9), fault_of_signal("nix-build", -15)
        assert killed is not None
        assert killed.kind is FaultKind.MEMORY
        assert ended is not None
        assert ended.kind is FaultKind.PROCESS
        assert fault_of_signal("nix-build", -11) is None
        assert fault_of_signal("nix-build", 1) is None


def watched(*lines: bytes) -> Watch:
    watch = Watch()
    for line in lines:
        watch.feed([line])
    together = Watch()
    together.feed(list(lines))
    assert watch == together
    return watch


class TestVerdict:
    @pytest.mark.parametrize(
        ("code", "status"),
        [
            (0, BuildStatus.SUCCESS),
            (100, BuildStatus.FAILURE),
            (101, BuildStatus.TIMED_OUT),
            (102, BuildStatus.HASH_MISMATCH),
            (103, BuildStatus.HASH_MISMATCH),
            (108, BuildStatus.FAILURE),
            (109, BuildStatus.TIMED_OUT),
            (111, BuildStatus.HASH_MISMATCH),
            (1, UnexpectedError("command failed with exit code 1")),
            (2, UnexpectedError("command failed with exit code 2")),
            (96, UnexpectedError("command failed with exit code 96")),
            (99, UnexpectedError("command failed with exit code 99")),
            (104, UnexpectedError("command failed with exit code 104")),
            (112, UnexpectedError("command failed with exit code 112")),
            (127, UnexpectedError("command failed with exit code 127")),
            (-11, UnexpectedError("unexpected build failure")),
        ],
    )
    def test_exit_codes(self, code: int, status: Status) -> None:
        assert status_of(code, Watch()) == status

    FAILED_OLD = b"error: builder for '/nix/store/x.drv' failed with exit code 3;"
    FAILED_NEW = b"error: Cannot build '/nix/store/x.drv'."
    HASH = b"error: hash mismatch in fixed-output derivation '/nix/store/x.drv':"
    SILENT_OLD = b"error: building of '/nix/store/x.drv!out' from .drv file timed out after 8 seconds of silence"
    SLOW_NEW = b"error: timed out after 3600 seconds"
    DEPENDENCY = b"error: 1 dependencies of derivation '/nix/store/y.drv' failed to build"
    SUMMARY = b"error: build of '/nix/store/x.drv', '/nix/store/y.drv' failed"

    @pytest.mark.parametrize(
        ("lines", "status"),
        [
            ([FAILED_OLD], BuildStatus.FAILURE),
            ([FAILED_NEW, b"       Reason: builder failed with exit code 3."], BuildStatus.FAILURE),
            ([b"builder for '/nix/store/x.drv' failed with exit code 2"], BuildStatus.FAILURE),  # 2.3
            ([FAILED_OLD, b"a line", DEPENDENCY], BuildStatus.FAILURE),
            ([DEPENDENCY], UnexpectedError("command failed with exit code 1")),
            (
                [FAILED_OLD.split(b"with")[0] + b"to produce output path"],
                UnexpectedError("command failed with exit code 1"),
            ),
            ([SILENT_OLD], BuildStatus.TIMED_OUT),
            ([SLOW_NEW], BuildStatus.TIMED_OUT),
            ([HASH], BuildStatus.HASH_MISMATCH),
            ([HASH, b"a builder's line", DEPENDENCY], BuildStatus.HASH_MISMATCH),
            ([SILENT_OLD, FAILED_OLD, SUMMARY], BuildStatus.TIMED_OUT),
            ([SILENT_OLD, HASH, SUMMARY], BuildStatus.HASH_MISMATCH),
            ([b"error: attribute 'x' missing"], UnexpectedError("command failed with exit code 1")),
            ([b"> " + HASH, b" " + SLOW_NEW], UnexpectedError("command failed with exit code 1")),
        ],
    )
    def test_texts_decide_where_a_daemon_makes_one_of_all_codes(self, lines: list[bytes], status: Status) -> None:
        assert status_of(1, watched(*lines)) == status

    def test_a_builder_cannot_choose_where_the_code_says_it(self) -> None:
        assert status_of(100, watched(self.HASH, self.SLOW_NEW)) is BuildStatus.FAILURE
        assert status_of(0, watched(self.HASH)) is BuildStatus.SUCCESS

    def test_a_builder_killed(self) -> None:
        assert watched(b"error: builder for '/nix/store/x.drv' failed due to signal 9 (Killed)").killed
        assert watched(self.FAILED_NEW, b"       Reason: builder failed due to signal 9 (Killed).").killed
        assert not watched(b"error: builder for '/nix/store/x.drv' failed due to signal 11").killed

    def test_only_the_final_error_speaks_of_the_host(self) -> None:
        lost = b"error: unexpected end-of-file"
        fault = watched(b"building", lost).host_fault()
        assert fault is not None
        assert fault.kind is FaultKind.NIX_DAEMON
        newer = watched(b"error:", b"       ... while x", b"", b"       error: out of memory").host_fault()
        assert newer is not None
        assert newer.kind is FaultKind.MEMORY
        assert watched(lost, b"a builder goes on", self.FAILED_OLD).host_fault() is None
        assert watched(lost, b"a builder goes on").host_fault() is None
        assert watched(self.FAILED_OLD, b"       last 1 log lines:", b"       > " + lost).host_fault() is None
        assert watched().host_fault() is None

    def test_gravest(self) -> None:
        order: list[Status] = [BuildStatus.SUCCESS, BuildStatus.FAILURE, BuildStatus.TIMED_OUT]
        order += [BuildStatus.HASH_MISMATCH, UnexpectedError("x")]
        for index, graver in enumerate(order):
            for other in order[: index + 1]:
                assert gravest(graver, other) == gravest(other, graver) == graver

    @given(st.integers(-64, 255), st.lists(st.binary(max_size=60), max_size=20))
    def test_any_end_has_a_verdict(self, code: int, lines: list[bytes]) -> None:
        watch = Watch()
        watch.feed([b"error: " + line for line in lines])
        watch.feed(lines)
        watch.host_fault()
        status = status_of(code, watch)
        assert (status is BuildStatus.SUCCESS) == (code == 0)
        assert isinstance(status, BuildStatus | UnexpectedError)
