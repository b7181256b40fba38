"""Fixtures that all tests share: servers of every supported version, and directories that a server's account can enter.

Servers start when a test first asks for them. Each process of a parallel run has its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from pgkeep import __version__
from pgkeep.errors import NotFoundError
from pgkeep.postgres.account import server_account
from pgkeep.postgres.binaries import ServerBinaries, find_binaries, installed_binaries
from pgkeep.postgres.server import ThrowawayServer
from support.disks import quick_place
from support.fault_proxy import FaultProxy
from support.seaweed import ADMIN, WRITER, S3Bucket, SeaweedServer
from support.servers import MAJORS, TEST_SETTINGS, MakeServer, sql
from support.simulated_bucket_policy import SimulatedBucketPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# The machines that run this have other work: a slow example is no failure.
hypothesis.settings.register_profile("pgkeep", deadline=None)
hypothesis.settings.load_profile("pgkeep")

_database_numbers = itertools.count(1)

_ADDS_ONLY = "PGKEEP_S3_ADDS_ONLY" in os.environ
"""Whether the tests' buckets are used as by a database host that may add, and neither delete nor overwrite."""


def pytest_report_header() -> list[str]:
    """Which servers the tests run on, and as whom."""
    found = [f"{binaries.version_text} ({binaries.bindir})" for binaries in installed_binaries()]
    account = server_account()
    whose = f"as the account {account.name}" if account else "as the user who runs the tests"
    return [f"pgkeep {__version__}; PostgreSQL {', '.join(found) or 'not found'}; servers run {whose}"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without a server first: a slip in a format shows in seconds."""
    unit = Path(__file__).parent / "unit"
    items.sort(key=lambda item: not item.path.is_relative_to(unit))


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """The operator's own servers and settings do not reach the tests."""
    kept = {"PGKEEP_SERVER_ACCOUNT", "PGKEEP_PG_BIN"}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("PG", "AWS_", "AZURE_", "GOOGLE_")) and name not in kept:
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def work_root() -> Iterator[Path]:
    """A directory for the whole run that every account can enter, unlike pytest's own for root."""
    path = Path(tempfile.mkdtemp(prefix="pgkeep-tests-", dir=quick_place()))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def work_dir(work_root: Path) -> Iterator[Path]:
    """An empty directory for one test, with a short path; the server's account can enter it, and owns what it is given there."""
    path = Path(tempfile.mkdtemp(dir=work_root))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session", params=MAJORS, ids=lambda major: f"pg{major}")
def postgres_major(request: pytest.FixtureRequest) -> int:
    """Each supported major version of PostgreSQL that tests run on."""
    major: int = request.param
    return major


@pytest.fixture(scope="session")
def binaries_of() -> Callable[[int], ServerBinaries]:
    """The programs of a major version; the test fails, and says what to install, where there are none."""

    def find(major: int) -> ServerBinaries:
        try:
            return find_binaries(major)
        except NotFoundError as error:
            pytest.fail(
                f"{error}\nHint: `make test` brings every server that the tests need; or {error.hint}", pytrace=False
            )

    return find


@pytest.fixture
def make_server(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[MakeServer]:
    """Start servers for this test alone; see ``support.servers.MakeServer``."""
    with contextlib.ExitStack() as stack:

        def make(
            major: int,
            *,
            checksums: bool = True,
            wal_segment_size: int = 16,
            settings: Mapping[str, str | int | bool] | None = None,
            hba: str | None = None,
            loopback: bool = False,
            initdb_options: Sequence[str] = (),
        ) -> ThrowawayServer:
            server = stack.enter_context(ThrowawayServer(binaries_of(major), loopback=loopback, parent=work_root))
            server.initdb(checksums=checksums, wal_segment_size=wal_segment_size, extra=initdb_options)
            server.configure(hba=hba)
            server.start({**TEST_SETTINGS, **(settings or {})})
            return server

        yield make


@pytest.fixture(scope="session")
def shared_server(
    binaries_of: Callable[[int], ServerBinaries], work_root: Path
) -> Iterator[Callable[[int], ThrowawayServer]]:
    """One server of a major version for all tests that ask; they use databases of their own, and leave its settings alone."""
    running: dict[int, ThrowawayServer] = {}
    with contextlib.ExitStack() as stack:

        def get(major: int) -> ThrowawayServer:
            if major not in running:
                server = stack.enter_context(ThrowawayServer(binaries_of(major), parent=work_root))
                server.initdb()
                server.start(TEST_SETTINGS)
                running[major] = server
            return running[major]

        yield get


@pytest.fixture
def server(shared_server: Callable[[int], ThrowawayServer], postgres_major: int) -> ThrowawayServer:
    """The shared server of each supported version in turn."""
    return shared_server(postgres_major)


@pytest.fixture
def database(server: ThrowawayServer) -> Iterator[str]:
    """The connection string of a fresh database on the shared server of each version, dropped after the test."""
    name = f"test_{next(_database_numbers)}"
    sql(server.dsn(), f"CREATE DATABASE {name}")
    yield server.dsn(name)
    sql(server.dsn(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def s3_server(work_root: Path) -> Iterator[SeaweedServer]:
    """A real S3 server for the whole run. Its administrator's credentials are in the environment from here on."""
    with SeaweedServer(work_root / "s3") as running, pytest.MonkeyPatch.context() as patch:
        for name, value in (WRITER if _ADDS_ONLY else ADMIN).environment().items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="session")
def s3_policy(s3_server: SeaweedServer) -> Iterator[SimulatedBucketPolicy]:
    """A way to the S3 server on which nothing is overwritten."""
    with SimulatedBucketPolicy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def s3_bucket(request: pytest.FixtureRequest, s3_server: SeaweedServer) -> S3Bucket:
    """An empty bucket for one test; with ``PGKEEP_S3_ADDS_ONLY`` one in which nobody deletes or overwrites but tests that are marked so."""
    bucket = s3_server.make_bucket()
    if not _ADDS_ONLY or request.node.get_closest_marker("deletes"):
        return bucket
    bucket.deny_deletion()
    policy: SimulatedBucketPolicy = request.getfixturevalue("s3_policy")
    return replace(bucket, way=policy.endpoint)


@pytest.fixture
def fault_proxy(s3_server: SeaweedServer) -> Iterator[FaultProxy]:
    """A way to the S3 server that breaks on demand."""
    with FaultProxy(s3_server.port) as proxy:
        yield proxy
