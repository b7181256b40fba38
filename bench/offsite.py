"""``python -m bench.offsite``: a full backup into a bucket and a restore from it, beside pgBackRest's, on one S3 server.

The server is SeaweedFS, on loopback and with TLS, which pgBackRest insists on. It works on the same cores as everybody, and for everybody
alike.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from xml.etree import ElementTree as ET

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench import __main__ as bench
from bench import full, machine, report, setup
from bench.contenders.base import Contender
from bench.contenders.pgbackrest import PgBackRest, PgBackRestNewer
from bench.contenders.pgkeep import Pgkeep
from bench.dataset import data_set, work_directory
from pgkeep.postgres.account import give_to
from pgkeep.postgres.server import Server
from pgkeep.units import parse_size, utc_now

# the same server as the tests' own
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.seaweed import ADMIN, REGION, S3Bucket, SeaweedServer

CONDITIONS = (
    "A full backup into an empty bucket, and a restore from it. The S3 server is SeaweedFS on loopback, with TLS, on the same cores as everybody. "
    "One round to warm up, whose restores were started and their rows counted, then the rounds that count."
)


class InBucket(Contender):
    """A contender whose repository is a bucket of its own, made anew for each round."""

    store: SeaweedServer
    store_directory: Path
    environment = ADMIN.environment()

    bucket: S3Bucket

    def clean(self) -> None:
        super().clean()
        self.bucket.request("DELETE", "")

    @property
    def repository(self) -> Path:
        return self.store_directory / "data"

    def repository_bytes(self) -> int:
        total, query = 0, {"list-type": "2"}
        while True:
            answer = ET.fromstring(self.bucket.request("GET", "", query=query).body)
            total += sum(int(size.text or 0) for size in answer.findall("{*}Contents/{*}Size"))
            after = answer.findtext("{*}NextContinuationToken")
            if not after:
                return total
            query["continuation-token"] = after


class PgkeepInBucket(InBucket, Pgkeep):
    name = Pgkeep.name

    def prepare(self) -> None:
        self.bucket = self.store.make_bucket()
        Pgkeep.prepare(self)

    @property
    def _url(self) -> str:
        options = {"endpoint": self.store.endpoint, "ca_file": str(self.store_directory / "certificate.pem")}
        return f"s3://{self.bucket.name}/auth?{urlencode(options)}"


class PgBackRestInBucket(InBucket, PgBackRest):
    def prepare(self) -> None:
        self.bucket = self.store.make_bucket()
        PgBackRest.prepare(self)

    @property
    def _directories(self) -> list[Path]:
        return [self.directory, self.directory / "lock", self.directory / "spool"]

    @property
    def _place(self) -> list[str]:
        return [
            "type=s3",
            "path=/auth",
            f"s3-bucket={self.bucket.name}",
            "s3-endpoint=127.0.0.1",
            f"s3-region={REGION}",
            f"s3-key={ADMIN.access_key}",
            f"s3-key-secret={ADMIN.secret_key}",
            "s3-uri-style=path",
            f"storage-port={urlsplit(self.store.endpoint).port}",
            "storage-verify-tls=n",
        ]


class PgBackRestNewerInBucket(PgBackRestInBucket, PgBackRestNewer):
    name = PgBackRestNewer.name


CONTENDERS: tuple[type[InBucket], ...] = (PgkeepInBucket, PgBackRestInBucket, PgBackRestNewerInBucket)


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Two files: a certificate for loopback with that of who signed it, and its key."""
    signer, authority = _certificate("bench authority", None)
    key, certificate = _certificate("bench", (signer, authority))
    files = directory / "certificate.pem", directory / "key.pem"
    pem = serialization.Encoding.PEM
    files[0].write_bytes(certificate.public_bytes(pem) + authority.public_bytes(pem))
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files


def _certificate(
    name: str, signed_by: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = utc_now()
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signed_by is None else signed_by[1].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=signed_by is None, path_length=None), critical=True)
        .sign(key if signed_by is None else signed_by[0], hashes.SHA256())
    )
    return key, certificate


def run(server: Server, directory: Path, runs: int) -> tuple[list[report.Row], list[str]]:
    """The rows, and why a contender was left out."""
    place = Path(tempfile.mkdtemp(prefix="store-", dir=directory))
    give_to(server.account, place)
    with SeaweedServer(place, make_certificate(place)) as store:
        InBucket.store, InBucket.store_directory = store, place
        os.chmod(place / "certificate.pem", 0o644)
        contenders, notes = bench.choose(CONTENDERS, server, directory, None)
        return list(full.run(server, contenders, runs)), notes


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.offsite", description=__doc__)
    parser.add_argument("--major", type=int, default=15, help="version of PostgreSQL (default 15)")
    parser.add_argument("--size", type=parse_size, default="1GiB", help="of the data set (default 1GiB)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print only: leave bench/results alone")
    options = parser.parse_args()
    setup.install_missing()
    with data_set(None, options.size, options.seed, options.major) as server, work_directory(server) as directory:
        version = server.binaries.version_text
        facts: dict[str, object] = {**machine.facts(), "postgresql": version, "seed": options.seed}
        rows, notes = run(server, directory, options.runs)
    text = report.markdown(f"pgkeep and pgBackRest, off-site, PostgreSQL {version}", CONDITIONS, rows, facts, notes)
    print(f"\n{text}", flush=True)
    if options.save:
        report.write("offsite", text, rows, facts, notes)


if __name__ == "__main__":
    main()
