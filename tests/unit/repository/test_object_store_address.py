"""Addresses of buckets, and the settings that stand for their options: what is meant, and what is refused before anything is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgkeep.config import RepositorySettings, parse_config
from pgkeep.errors import ConfigError
from pgkeep.repository.object_store_address import OPTIONS, ObjectAddress


def parse(text: str) -> ObjectAddress:
    return ObjectAddress.parse(text)


def configured(settings: str) -> str:
    """The url of a repository with these lines in its table."""
    return (
        parse_config(f'[repository.main]\nkey = "none"\n{settings}\n', Path("/etc/pgkeep/pgkeep.toml")).repository().url
    )


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://bucket/a", "bucket", "a"),
        ("gs://my_bucket/a/b/", "my_bucket", "a/b"),
        ("az://container/a-1/b.2?account=mine", "container", "a-1/b.2"),
        ("s3://b.example.com/a?region=eu-west-1", "b.example.com", "a"),
    ],
)
def test_an_address_names_a_bucket_and_a_prefix(text: str, bucket: str, prefix: str) -> None:
    address = parse(text)
    assert (address.bucket, address.prefix) == (bucket, prefix)
    assert parse(str(address)) == address


values = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, categories=["L", "N", "P"]), min_size=1, max_size=9
)


@given(
    options=st.dictionaries(st.sampled_from(["region", "profile", "storage_class"]), values),
    path=values.map(lambda text: "/" + text),
)
def test_an_address_is_written_so_that_it_reads_back(options: dict[str, str], path: str) -> None:
    address = ObjectAddress.parse("s3://bucket/a", {**options, "ca_file": path})
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s3://", "names no bucket"),
        ("s3:///a", "names no bucket"),
        ("s3://B_/a", "names no bucket"),
        ("s3://bucket/a//b", "is not one"),
        ("s3://bucket/../b", "is not one"),
        ("s3://bucket/a b", "is not one"),
        ("s3://key:secret@bucket/a", "a user or a secret before the bucket"),
        ("s3://bucket/a?acess_key=secret", "has no option 'acess_key'"),
        ("s3://bucket/a?account=x", "has no option 'account'"),
        ("gs://bucket/a?region=x", "has no option 'region'"),
        ("az://bucket/a?credentials_file=/x", "has no option 'credentials_file'"),
        ("s3://bucket/a?path_style=yes", "path_style of s3://bucket/a is neither true nor false"),
        ("s3://bucket/a?ca_file=ca.pem", "not an absolute path"),
        ("s3://bucket/a?endpoint=minio:9000", "endpoint of s3://bucket/a is not an address"),
        ("s3://bucket/a?endpoint=https://k:secret@minio", "endpoint of s3://bucket/a is not an address"),
        ("s3://bucket/a?retry_for=soon", "not a duration: 'soon'"),
        ("s3://bucket/a?region=", "region of s3://bucket/a is empty"),
        ("s3://bucket/a?region=x&region=y", "is given region twice"),
        ("s3://bucket/a?endpoint=http://10.0.0.1:9000", "would be reached without TLS"),
    ],
)
def test_a_mistake_is_named_and_no_secret_is_repeated(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "secret" not in f"{caught.value} {caught.value.hint}".replace("a user or a secret", "")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"])
def test_this_machine_may_be_reached_without_tls(endpoint: str) -> None:
    assert parse(f"s3://bucket/a?endpoint={endpoint}").is_plain


@pytest.mark.parametrize(
    ("text", "path_style", "in_order"),
    [
        ("s3://bucket/a", False, True),
        ("s3://with.dots/a", True, True),
        ("s3://bucket--use1-az4--x-s3/a", False, False),
        ("s3://bucket/a?endpoint=https://minio:9000", True, False),
        ("s3://bucket/a?endpoint=https://minio:9000&path_style=false", False, False),
        ("s3://bucket/a?path_style=true", True, True),
    ],
)
def test_what_is_not_said_is_what_the_service_does(text: str, path_style: bool, in_order: bool) -> None:
    address = parse(text)
    assert (address.path_style, address.lists_in_order) == (path_style, in_order)


def test_the_environment_may_name_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Amazon's own programs; an address that names one is not overridden."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://minio:9000/")
    assert parse("s3://bucket/a").endpoint == "https://minio:9000"
    assert parse("s3://bucket/a?endpoint=https://other").endpoint == "https://other"
    assert parse("gs://bucket/a").endpoint is None


def test_settings_beside_the_url_become_part_of_it() -> None:
    url = configured(
        'url = "s3://bucket/auth"\nendpoint = "https://minio:9000"\nregion = "eu-west-1"\npath_style = true\n'
        'ca_file = "ca.pem"\nprofile = "offsite"\nretry_for = "1min"'
    )
    address = parse(url)
    assert address.options == {
        "endpoint": "https://minio:9000",
        "region": "eu-west-1",
        "path_style": "true",
        "ca_file": "/etc/pgkeep/ca.pem",
        "profile": "offsite",
        "retry_for": "1min",
    }
    assert configured(f'url = "{url}"') == url
    assert address.retry_for == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('url = "file:///backups"\nregion = "x"', "[repository.main] url: 'file:///backups' is no object store, and takes no region"),
        ('url = "s3://bucket?region=a"\nregion = "b"', "is given region twice"),
        ('url = "s3://bucket"\nretry_for = "soon"', "[repository.main] retry_for: not a duration"),
        ('url = "s3://bucket"\nendpint = "x"', "endpint is not a setting (nearest: endpoint;"),
        ('url = "s3://bucket"\npath_style = "yes"', "[repository.main] path_style: input should be a valid boolean"),
        ('url = "gs://bucket"\nprofile = "x"', "has no option 'profile'"),
    ],
)  # fmt: skip
def test_mistakes_in_settings_are_named_with_their_place(settings: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(settings)
    assert message in str(caught.value)


def test_every_option_is_a_setting() -> None:
    assert set(RepositorySettings.model_fields) - {"retention", "cold", "append_only"} == {
        *OPTIONS,
        "name",
        "url",
        "key",
    }
