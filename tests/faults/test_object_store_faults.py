"""A store behind a network that breaks: what was promised holds, what is over is said, and nothing is half there.

Between pgkeep and a real S3 server stands a proxy that resets, cuts off, delays and refuses, each on demand or by a seed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import random
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pgkeep.demo.workload import Client, load
from pgkeep.errors import ConfigError, StoreError
from pgkeep.postgres.server import ThrowawayServer
from pgkeep.repository import Repository, open_store
from pgkeep.repository.leases import running
from pgkeep.repository.object_store import ObjectStore
from pgkeep.repository.object_store_address import ObjectAddress
from pgkeep.repository.object_store_client import Patience
from pgkeep.repository.store import Capabilities, ObjectArchived, ObjectExists, ObjectMissing
from pgkeep.repository.store_probe import describe, probe
from pgkeep.restore.target import RecoveryTarget
from pgkeep.verify import VerifyRequest, run_verify
from support.buckets import BucketProgram
from support.fault_proxy import Fault, FaultProxy, Message, RandomFaults
from support.jobs import KEY, SMALL, backup, restore
from support.seaweed import STRANGER, sign
from support.servers import TEST_SETTINGS, sql
from support.wal import (
    WAL_SETTINGS,
    ReceiverThread,
    current_lsn,
    expect_same_wal,
    system_identifier,
    write_wal,
    writing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgkeep.postgres.binaries import ServerBinaries
    from support.seaweed import S3Bucket, SeaweedServer

_SEED = int(os.environ.get("PGKEEP_FAULT_SEED", "20261123"))

HASTE = Patience(connect=2, small=0.5, transfer=5, stall=0.5, retry_for=20, first=5, wait_least=0.01, wait_most=0.1)
"""For a store that is on this machine."""

BREAKING = [fault for fault in Fault if fault not in {Fault.NONE, Fault.SILENCE}]


@pytest.fixture
def store(s3_bucket: S3Bucket, fault_proxy: FaultProxy) -> ObjectStore:
    """An empty store behind the proxy."""
    return ObjectStore(ObjectAddress.parse(s3_bucket.url_at(fault_proxy.endpoint)), HASTE)


@pytest.fixture
def beside(s3_bucket: S3Bucket) -> ObjectStore:
    """The same store, with nothing between."""
    return ObjectStore(ObjectAddress.parse(s3_bucket.url))


def names(store: ObjectStore) -> list[str]:
    return [info.name for info in store.list("")]


@pytest.mark.deletes
@pytest.mark.parametrize("fault", [*BREAKING, Fault.SILENCE], ids=lambda fault: fault.name.lower())
def test_every_verb_does_its_work_whatever_happens_to_it_twice(
    store: ObjectStore, beside: ObjectStore, fault_proxy: FaultProxy, fault: Fault
) -> None:
    data = os.urandom(100_000)
    twice = [fault] * (1 if fault is Fault.SILENCE else 2)
    store.put("a/0", [b"x"])
    fault_proxy.next(*twice)
    store.put("a/1", [data[:1000], data[1000:]])
    assert beside.get("a/1") == data
    verbs: list[tuple[Callable[[], object], object]] = [
        (lambda: store.get("a/1"), data),
        (lambda: store.get("a/1", 100, 50_000), data[100:50_100]),
        (lambda: store.info("a/1").size, len(data)),
        (lambda: names(store), ["a/0", "a/1"]),
        (lambda: store.folders("a/"), []),
    ]
    for call, answer in verbs:
        fault_proxy.next(*twice)
        assert call() == answer
    fault_proxy.next(*twice)
    store.delete("a/1")
    assert names(beside) == ["a/0"]
    assert fault_proxy.count(fault) > 0


@pytest.mark.parametrize("fault", [Fault.DROPPED_ANSWER, Fault.ERROR_AFTER, Fault.HALF_ANSWER])
@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "unconditional"])
def test_a_put_whose_answer_was_lost_knows_its_own_object_again(
    store: ObjectStore, fault_proxy: FaultProxy, fault: Fault, conditional: bool
) -> None:
    store.adapt(Capabilities(conditional_put=conditional, sorted_listing=False))
    fault_proxy.next(fault, where=_is_put)
    store.put("a", [b"mine"])
    assert store.get("a") == b"mine"
    assert fault_proxy.count(fault) == 1


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.HALF_REQUEST, Fault.SERVER_ERROR])
def test_a_put_that_another_writer_overtook_takes_nothing_for_its_own(
    store: ObjectStore, beside: ObjectStore, fault_proxy: FaultProxy, fault: Fault
) -> None:
    """The other one's object comes between the first try, which was lost, and the second."""

    def overtake(message: Message) -> None:
        if _is_put(message) and not names(beside):
            beside.put("a", [b"mien"])

    fault_proxy.seen = overtake
    fault_proxy.next(fault, where=_is_put)
    with pytest.raises(ObjectExists):
        store.put("a", [b"mine"])
    assert store.get("a") == b"mien"


def test_an_object_that_is_there_is_not_taken_for_ones_own(store: ObjectStore, fault_proxy: FaultProxy) -> None:
    """Without a lost answer before, even the same bytes are another's."""
    store.put("a", [b"same"])
    with pytest.raises(ObjectExists):
        store.put("a", [b"same"])
    fault_proxy.next(Fault.SLOW_DOWN, where=_is_put)
    with pytest.raises(ObjectExists):
        store.put("a", [b"other"])


def test_half_a_put_is_no_object(store: ObjectStore, beside: ObjectStore, fault_proxy: FaultProxy) -> None:
    fault_proxy.plan = lambda message: Fault.HALF_REQUEST if _is_put(message) else Fault.NONE
    hasty = ObjectStore(store.address, Patience(retry_for=0.5, first=0.5))
    with pytest.raises(StoreError, match=r"cannot write packs/data/aa/bb in s3://.* times within"):
        hasty.put("packs/data/aa/bb", [os.urandom(3 << 20)])
    assert names(beside) == []
    assert fault_proxy.count(Fault.HALF_REQUEST) > 2


def test_a_damaged_put_is_refused_by_its_check_sum_and_made_again(
    store: ObjectStore, beside: ObjectStore, fault_proxy: FaultProxy
) -> None:
    headers: list[tuple[str, str]] = []
    fault_proxy.seen = lambda message: headers.extend(message.headers) if _is_put(message) else None
    data = os.urandom(300_000)
    fault_proxy.next(Fault.DAMAGED_REQUEST, Fault.DAMAGED_REQUEST, where=_is_put)
    store.put("a", [data])
    assert beside.get("a") == data
    assert fault_proxy.count(Fault.DAMAGED_REQUEST) == 2
    assert sum(name.lower() == "x-amz-checksum-sha256" for name, _ in headers) == 3
    assert sum((name.lower(), value) == ("if-none-match", "*") for name, value in headers) == 3


def test_what_cannot_be_mended_by_waiting_is_said_at_once(store: ObjectStore, fault_proxy: FaultProxy) -> None:
    fault_proxy.answer = lambda _message: (
        403,
        "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    )
    for verb, call in (("write", lambda: store.put("a", [b"1"])), ("list", lambda: list(store.list("")))):
        before = len(fault_proxy.requests)
        with pytest.raises(StoreError, match=rf"cannot {verb} .*: access denied \(AccessDenied\)$"):
            call()
        assert len(fault_proxy.requests) == before + 1


def test_a_store_that_stays_away_is_given_up_in_time(store: ObjectStore, fault_proxy: FaultProxy) -> None:
    store.put("a", [b"1"])
    fault_proxy.plan = lambda _message: Fault.SLOW_DOWN
    hasty = ObjectStore(store.address, Patience(retry_for=1.0))
    begun = time.monotonic()
    with pytest.raises(
        StoreError, match=r"cannot read a in s3://\S+ at \S+: SlowDown \(status 503\), \d+ times within 1 s"
    ):
        hasty.get("a")
    assert 0.9 < time.monotonic() - begun < 3
    assert 3 < len(fault_proxy.requests) < 20, "the waits grow"


def test_an_address_where_nobody_answers_is_given_up_sooner(s3_bucket: S3Bucket) -> None:
    with FaultProxy(s3_bucket.server.port) as closed:
        endpoint = closed.endpoint
    wrong = ObjectStore(ObjectAddress.parse(s3_bucket.url_at(endpoint)), Patience(first=0.3, retry_for=60))
    with pytest.raises(StoreError, match="the connection was refused") as caught:
        wrong.info("pgkeep.json")
    assert f"curl -v {endpoint}" in str(caught.value.hint)


def test_an_outage_is_waited_for(store: ObjectStore, fault_proxy: FaultProxy) -> None:
    store.put("a", [b"1"])
    fault_proxy.plan = lambda _message: Fault.RESET
    fault_proxy.break_connections()
    timer = threading.Timer(1.0, lambda: setattr(fault_proxy, "plan", None))
    timer.start()
    assert store.get("a") == b"1"
    timer.join()


def test_a_signal_ends_the_waiting_for_a_store_that_is_silent(s3_bucket: S3Bucket, fault_proxy: FaultProxy) -> None:
    program = (
        "import signal, sys, time; from pgkeep.repository import open_store\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, 1.5)\n"
        "begun = time.monotonic()\n"
        "try: open_store(sys.argv[1]).get('a')\n"
        "except KeyboardInterrupt: print(time.monotonic() - begun)"
    )
    fault_proxy.plan = lambda _message: Fault.SILENCE
    url = s3_bucket.url_at(fault_proxy.endpoint)
    answer = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, timeout=20, check=True
    )
    assert 2 < float(answer.stdout) < 4


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"bucket": "no-such-bucket"}, "there is no bucket 'no-such-bucket' at http://", "create the bucket"),
        ({"profile": "stranger"}, r"access denied \(AccessDenied\)", "s3:GetObject"),
        ({"profile": "wrong"}, "the credentials are not accepted: The request signature", "AWS_ACCESS_KEY_ID"),
        ({"profile": "unknown"}, "the credentials are not accepted: The access key ID", "profile"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(
    s3_bucket: S3Bucket, tmp_path: Path, changes: dict[str, str], message: str, hint: str
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(
        s3_bucket.server.credentials_file.read_text()
        + f"[wrong]\naws_access_key_id = {STRANGER.access_key}\naws_secret_access_key = x\n"
        + "[unknown]\naws_access_key_id = nobody\naws_secret_access_key = x\n"
    )
    chosen = {"profile": "admin", **changes}
    bucket = chosen.pop("bucket", s3_bucket.name)
    url = s3_bucket.url_at(s3_bucket.server.endpoint, credentials_file=str(credentials), **chosen)
    store = open_store(url.replace(s3_bucket.name, bucket))
    for call in (
        lambda: store.info("pgkeep.json"),
        lambda: store.get("pgkeep.json"),
        lambda: store.put("a", [b"1"]),
        lambda: list(store.list("")),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            call()
        assert not isinstance(caught.value, ObjectMissing)
        assert hint in str(caught.value.hint)
        assert "secret" not in f"{caught.value} {caught.value.hint}".lower().replace("aws_secret_access_key", "")


@pytest.mark.parametrize(
    ("status", "body", "message", "hint"),
    [
        (403, "<Code>RequestTimeTooSkewed</Code>", "this machine's clock and the store's are too far apart", "NTP"),
        (301, "<Code>PermanentRedirect</Code>", "the bucket 'bucket-.*' is in another region", "region = "),
        (
            400,
            "<Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region>",
            "is in another region",
            'region = "eu-west-1"',
        ),
        (403, "<Code>ExpiredToken</Code><Message>It is over</Message>", "are not accepted: It is over", "AWS_ACCESS"),
        (403, "<Code>InvalidObjectState</Code>", "it lies in an archive and must be thawed first", "thaw"),
        (501, "<Code>NotImplemented</Code><Message>Not here</Message>", r"Not here \(status 501\)", "None"),
    ],
)
def test_simulated_answers_that_no_server_here_gives_are_understood(
    store: ObjectStore, fault_proxy: FaultProxy, status: int, body: str, message: str, hint: str
) -> None:
    """Clocks, regions, ends of sessions and archives, in Amazon's words."""
    fault_proxy.answer = lambda _message: (status, f"<Error>{body}</Error>")
    with pytest.raises(StoreError, match=message) as caught:
        store.get("packs/data/aa/bb")
    assert hint in str(caught.value.hint)
    assert isinstance(caught.value, ObjectArchived) == ("archive" in message)
    assert len(fault_proxy.requests) == 1


def test_a_put_to_a_simulated_google_creates_only_where_there_is_nothing(
    fault_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server here speaks Google's protocol for puts: what is asked is looked at, and the answer is made up."""
    account = tmp_path / "account.json"
    account.write_text('{"disable_oauth": true, "client_email": "", "private_key": "", "private_key_id": ""}')
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    asked: list[Message] = []
    fault_proxy.seen = asked.append
    fault_proxy.answer = lambda _message: (412, "<Error><Code>PreconditionFailed</Code></Error>")
    store = ObjectStore(ObjectAddress.parse(f"gs://bucket/auth?endpoint={fault_proxy.endpoint}"), HASTE)
    with pytest.raises(ObjectExists):
        store.put("a", [b"1"])
    (put,) = asked
    assert (put.method, put.body, put.header("x-goog-if-generation-match")) == ("PUT", b"1", "0")


def test_a_large_object_is_brought_whole_over_a_line_that_breaks_all_the_time(
    store: ObjectStore, fault_proxy: FaultProxy
) -> None:
    data = os.urandom(30 << 20)
    fault_proxy.plan = RandomFaults(_SEED, rate=0.5)
    store.put("index/a", [data[: 20 << 20], data[20 << 20 :]])
    assert bytes(store.read_mapped("index/a")) == data, f"seed {_SEED}"
    assert store.get("index/a") == data, f"seed {_SEED}"


def test_a_listing_is_whole_over_a_line_that_breaks_all_the_time(store: ObjectStore, fault_proxy: FaultProxy) -> None:
    """Page by page in the server's order, which is one by one within a folder, and folder by folder."""
    wanted = sorted(f"packs/{number % 7}/{number:04}" for number in range(1500))
    beside = ObjectStore(store.address)
    with ThreadPoolExecutor(8) as executor:
        list(executor.map(lambda name: beside.put(name, [b"x"]), wanted))
    fault_proxy.plan = RandomFaults(_SEED, rate=0.6)
    for is_sorted in (False, True):
        store.adapt(Capabilities(sorted_listing=is_sorted))
        assert names(store) == wanted, f"seed {_SEED}"
    assert fault_proxy.count() > 0


def test_a_service_that_lists_out_of_order_after_all_is_an_error(store: ObjectStore) -> None:
    """SeaweedFS lists as its folders lie; whoever relied on the order would miss objects."""
    for name in ("a/1", "a-b"):
        store.put(name, [b"x"])
    store.adapt(Capabilities(sorted_listing=True))
    with pytest.raises(StoreError, match="does not list its objects in order any more: a-b came after a/1"):
        names(store)


def test_tls_with_an_authority_of_ones_own_takes_its_certificate(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    context, authority = make_certificates(tmp_path)
    with FaultProxy(s3_bucket.server.port, tls=context) as proxy:
        with pytest.raises(StoreError, match="its certificate is not trusted") as caught:
            open_store(s3_bucket.url_at(proxy.endpoint)).info("a")
        assert "ca_file" in str(caught.value.hint)
        store = open_store(s3_bucket.url_at(proxy.endpoint, ca_file=str(authority)))
        store.put("a", [b"1"])
        assert store.get("a") == b"1"
        assert probe(store) is not None


def test_without_tls_only_this_machine_is_reached() -> None:
    with pytest.raises(ConfigError, match="would be reached without TLS") as caught:
        open_store("s3://bucket/auth?endpoint=http://minio.example:9000")
    assert "allow_http" in str(caught.value.hint)
    allowed = "s3://bucket/auth?allow_http=true&endpoint=http://minio.example:9000"
    assert open_store(allowed).url == allowed


@pytest.mark.deletes
def test_a_probe_finds_the_same_behind_a_line_that_breaks(
    store: ObjectStore, beside: ObjectStore, fault_proxy: FaultProxy
) -> None:
    fault_proxy.plan = RandomFaults(_SEED, rate=0.2)
    assert probe(store) == probe(beside), f"seed {_SEED}"


def test_a_service_that_takes_no_notice_of_the_condition_is_found_out(
    s3_bucket: S3Bucket, fault_proxy: FaultProxy, tmp_path: Path
) -> None:
    """Simulated by the proxy, which takes If-None-Match away: pgkeep says what is weaker, and looks before it writes."""

    def forget_the_condition(message: Message) -> None:
        if _is_put(message) and message.header("if-none-match") is not None:
            headers = {"host": str(message.header("host"))}
            signed = sign("PUT", message.path, "", headers, hashlib.sha256(message.body).hexdigest())
            message.headers = [*signed.items(), ("Content-Length", str(len(message.body)))]

    fault_proxy.change = forget_the_condition
    url = s3_bucket.url_at(fault_proxy.endpoint)
    capabilities = probe(open_store(url))
    assert capabilities is not None
    assert not capabilities.conditional_put
    warning = next(finding for finding in describe("store", capabilities) if finding.status == "warning")
    assert "pgkeep looks before it writes" in warning.message

    Repository.create(open_store(url), KEY, SMALL, capabilities)
    repository = Repository.open(open_store(url), KEY)
    assert repository.capabilities == capabilities
    repository.store.put("a", [b"first"])
    with pytest.raises(ObjectExists):
        repository.store.put("a", [b"second"])
    assert repository.store.get("a") == b"first"


def _is_put(message: Message) -> bool:
    return message.method == "PUT"


def make_certificates(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS for 127.0.0.1, and the certificate of its authority."""
    now = datetime.now(UTC)

    def make(
        subject: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: str,
        signer: ec.EllipticCurvePrivateKey,
        *,
        is_authority: bool,
    ) -> x509.Certificate:
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(signer, hashes.SHA256())
        )

    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = make("our authority", authority_key, "our authority", authority_key, is_authority=True)
    certificate = make("store", server_key, "our authority", authority_key, is_authority=False)
    (directory / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (directory / "server.pem").write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    return context, directory / "ca.pem"


# The whole way, over a line that breaks by chance


@pytest.fixture(scope="module")
def service(binaries_of: Callable[[int], ServerBinaries], work_root: Path) -> Iterator[ThrowawayServer]:
    """A small authentication service whose WAL segments are of 1 MiB."""
    with ThrowawayServer(binaries_of(17), parent=work_root) as server:
        server.initdb(wal_segment_size=1)
        server.start({**TEST_SETTINGS, **WAL_SETTINGS})
        load(server.dsn(), users=300)
        yield server


def test_backup_wal_and_restore_over_a_line_that_breaks_lose_nothing(
    service: ThrowawayServer, s3_bucket: S3Bucket, fault_proxy: FaultProxy, work_dir: Path
) -> None:
    """A tenth of all requests fare badly. All that was committed comes back, every object is whole, and nothing is there twice."""
    program = BucketProgram(work_dir / "setup", service.dsn(), s3_bucket.url_at(fault_proxy.endpoint))
    setup = program.prepare()
    fault_proxy.plan = RandomFaults(_SEED, rate=0.1)
    with ReceiverThread(setup) as receiver, Client(service.dsn(), rate=50) as client:
        receiver.wait_for("streaming")
        repository = setup.repository("auth")
        taken = backup(service.dsn(), repository)
        second = backup(service.dsn(), repository)
        receiver.wait_shipped(write_wal(service.dsn(), 4), 60)
        client.stop()
        end = write_wal(service.dsn(), 0.1)
        receiver.wait_shipped(end, 60)
    expect_same_wal(setup, service, system_identifier(service.dsn()), taken.start_lsn, end)
    report = run_verify(VerifyRequest(max_age_seconds=0), repository.store, repository)
    assert report.damage == [], f"seed {_SEED}"
    outcome = restore(repository, work_dir / "copy", recovery=RecoveryTarget(kind="latest"), start=True)
    faults = fault_proxy.count()
    fault_proxy.plan = None
    try:
        users = [user for (user,) in sql(service.dsn(), "SELECT id FROM users ORDER BY id")]
        assert outcome.dsn is not None
        assert [user for (user,) in sql(outcome.dsn, "SELECT id FROM users ORDER BY id")] == users
    finally:
        stop_copy(work_dir / "copy", service)
    assert faults > 10, "the line was too good"
    assert {info.name for info in repository.store.list("packs/")} == repository.index.known_packs()
    assert second.new_size < taken.new_size / 5
    assert running(repository.store) == []


def test_a_store_that_was_away_is_caught_up_by_the_receiver(
    service: ThrowawayServer, s3_bucket: S3Bucket, fault_proxy: FaultProxy, work_dir: Path
) -> None:
    program = BucketProgram(work_dir / "setup", service.dsn(), s3_bucket.url_at(fault_proxy.endpoint, retry_for="1s"))
    setup = program.prepare()
    start = current_lsn(service.dsn())
    with ReceiverThread(setup) as receiver:
        receiver.wait_for("streaming")
        receiver.wait_shipped(write_wal(service.dsn(), 1))
        fault_proxy.plan = lambda _message: Fault.RESET
        with writing(service.dsn()) as positions:
            receiver.wait_for("store auth", "alarm", 40)
        fault_proxy.plan = None
        end = write_wal(service.dsn(), 0.1)
        assert end > positions[-1]
        receiver.wait_shipped(end, 40)
    expect_same_wal(setup, service, system_identifier(service.dsn()), start, end)


def stop_copy(directory: Path, service: ThrowawayServer) -> None:
    from pgkeep.postgres.server import Server

    Server(directory, service.binaries).stop()


_FLAT = """
import os, random, resource, sys
from pgkeep.repository import open_store
store, size = open_store(sys.argv[1]), int(sys.argv[2])
data = random.Random(1).randbytes(8 << 20)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
def work(first, last):
    for number in range(first, last):
        store.put(f"packs/{number}", [data])
        for start in range(0, len(data), 512 << 10):
            assert store.get(f"packs/{number}", start, 512 << 10) == data[start:start + (512 << 10)]
        assert len(store.read_mapped(f"packs/{number}")) == len(data)
        store.delete(f"packs/{number}")
work(0, 6)
before = peak()
work(6, 6 + size)
print(peak() - before)
"""


@pytest.mark.deletes
def test_memory_does_not_grow_with_what_goes_through(s3_bucket: S3Bucket) -> None:
    """Another 80 MiB written, read ahead and read whole, in MiB of the process's peak."""
    answer = subprocess.run(
        [sys.executable, "-c", _FLAT, s3_bucket.url, "10"], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) < 24


def test_two_repositories_of_one_program_have_credentials_of_their_own(
    s3_server: SeaweedServer, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    writer = open_store(
        s3_bucket.url_at(s3_server.endpoint, credentials_file=str(s3_server.credentials_file), profile="writer")
    )
    stranger = open_store(
        s3_bucket.url_at(s3_server.endpoint, credentials_file=str(s3_server.credentials_file), profile="stranger")
    )
    writer.put("a", [b"1"])
    with pytest.raises(StoreError, match="access denied"):
        stranger.get("a")
    assert writer.get("a") == b"1"


def test_keys_that_are_replaced_in_the_file_are_taken_up(
    s3_server: SeaweedServer, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program gives them, as for short-lived ones: it is asked again when they end."""
    calls = tmp_path / "calls"
    script = tmp_path / "give.py"
    script.write_text(
        "import datetime, json\n"
        f"open({str(calls)!r}, 'a').write('x')\n"
        "end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': 'writer-access-key', 'SecretAccessKey': 'writer-secret-key',"
        " 'Expiration': end.isoformat()}))\n"
    )
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[short]\ncredential_process = {sys.executable} {script}\n")
    store = open_store(s3_bucket.url_at(s3_server.endpoint, credentials_file=str(credentials), profile="short"))
    store.put("a", [b"1"])
    assert store.get("a") == b"1"
    first = len(calls.read_text())
    time.sleep(1.1)
    assert store.get("a") == b"1"
    assert len(calls.read_text()) > first


def test_a_seed_gives_the_same_faults() -> None:
    """What a run met can be met again."""
    messages = [Message(f"GET /{random.Random(n).random()} HTTP/1.1", [], b"") for n in range(100)]
    plans = [RandomFaults(5, rate=0.5), RandomFaults(5, rate=0.5)]
    assert [plans[0](m) for m in messages] == [plans[1](m) for m in messages]
    assert {plans[0](m) for m in messages} > {Fault.NONE, Fault.RESET}
