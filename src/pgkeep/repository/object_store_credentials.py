"""Credentials for S3 from the shared files, as other programs read them; obstore itself knows the rest of the standard chain.

In this order, which is that of Amazon's own programs: a profile that the address names; the environment's keys; a web
identity; the profile of ``AWS_PROFILE`` or ``default`` in ``~/.aws/credentials`` and ``~/.aws/config``; the roles of containers
and machines. (AWS SDKs and Tools Reference Guide, "Shared config and credentials files", "Process credential provider".)
"""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pgkeep.errors import ConfigError, StoreError
from pgkeep.repository.object_store_address import ObjectAddress

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["profile_provider", "profile_region"]

_REFRESH = timedelta(minutes=10)
"""Files are read again after it: whoever writes temporary keys there replaces them before they end."""

_PROCESS_SECONDS = 60

_ELSEWHERE = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")
"""What comes before the default profile; obstore reads these itself."""

_BOTO3_NEEDED = {"role_arn", "sso_session", "sso_start_url", "login_session"}


def profile_provider(address: ObjectAddress) -> Callable[[], S3Credential] | None:
    """Where the keys come from, or None where obstore finds them.

    Raises ConfigError for a profile that is named and not there, or that says nothing that is known.
    """
    named = address.options.get("profile") or ("default" if "credentials_file" in address.options else None)
    if named is None and any(os.environ.get(variable) for variable in _ELSEWHERE):
        return None
    profile = named or os.environ.get("AWS_PROFILE") or "default"
    settings = _profile(address, profile)
    if not settings:
        if named is None and "AWS_PROFILE" not in os.environ:
            return None
        files = " nor in ".join(str(path) for path in _files(address))
        raise ConfigError(f"there is no profile {profile!r} in {files}", hint="aws configure list-profiles shows them")
    if {"aws_access_key_id", "aws_secret_access_key"} <= settings.keys():
        return lambda: _static(_profile(address, profile))
    if "credential_process" in settings:
        return lambda: _from_process(settings["credential_process"], profile)
    if settings.keys() & _BOTO3_NEEDED:
        return _from_boto3(profile)
    if named is None:
        return None
    raise ConfigError(
        f"the profile {profile!r} has no credentials", hint="it needs aws_access_key_id and aws_secret_access_key"
    )


def profile_region(address: ObjectAddress) -> str | None:
    """The region that the profile names, where neither the address nor the environment does."""
    if any(os.environ.get(variable) for variable in ("AWS_REGION", "AWS_DEFAULT_REGION")):
        return None
    return _profile(address, address.options.get("profile") or os.environ.get("AWS_PROFILE") or "default").get("region")


def _files(address: ObjectAddress) -> list[Path]:
    home = Path(os.path.expanduser("~")) / ".aws"
    given = address.options.get("credentials_file") or os.environ.get("AWS_SHARED_CREDENTIALS_FILE")
    return [Path(os.environ.get("AWS_CONFIG_FILE") or home / "config"), Path(given) if given else home / "credentials"]


def _profile(address: ObjectAddress, profile: str) -> dict[str, str]:
    """The settings of a profile; those of the credentials file win. Raises ConfigError for a file that cannot be read."""
    settings: dict[str, str] = {}
    for path in _files(address):
        parser = configparser.RawConfigParser(default_section="")
        try:
            parser.read_string(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            # the account of a service may have no right to look into a home that is not its own
            if str(path) == address.options.get("credentials_file"):
                raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from None
            continue
        except (configparser.Error, UnicodeDecodeError):
            raise ConfigError(f"{path} is not a file of profiles", hint="it has [name] and key = value lines") from None
        for section in (profile, f"profile {profile}"):
            if parser.has_section(section):
                settings.update(parser[section])
    return settings


def _static(settings: Mapping[str, str]) -> S3Credential:
    token = settings.get("aws_session_token")
    return {
        "access_key_id": settings.get("aws_access_key_id", ""),
        "secret_access_key": settings.get("aws_secret_access_key", ""),
        "token": token,
        "expires_at": datetime.now(UTC) + _REFRESH,
    }


def _from_process(command: str, profile: str) -> S3Credential:
    try:
        done = subprocess.run(
            shlex.split(command), check=True, capture_output=True, timeout=_PROCESS_SECONDS, stdin=subprocess.DEVNULL
        )
        answer = json.loads(done.stdout)
        expires = answer.get("Expiration")
        return {
            "access_key_id": answer["AccessKeyId"],
            "secret_access_key": answer["SecretAccessKey"],
            "token": answer.get("SessionToken"),
            "expires_at": datetime.fromisoformat(expires) if expires else datetime.now(UTC) + _REFRESH,
        }
    except (OSError, ValueError, KeyError, AttributeError, subprocess.SubprocessError) as error:
        raise StoreError(
            f"the credential_process of profile {profile!r} gave no credentials: {type(error).__name__}",
            hint=f"run it yourself: {shlex.split(command)[0]} …",
        ) from None


def _from_boto3(profile: str) -> Callable[[], S3Credential]:
    """Roles and single sign-on are what Amazon's own library is for."""
    if importlib.util.find_spec("boto3") is None:
        raise ConfigError(
            f"the profile {profile!r} takes a role or single sign-on, which needs Amazon's own library",
            hint="pip install 'pgkeep[aws]', or give the profile a credential_process",
        )
    import boto3  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from botocore.exceptions import BotoCoreError  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from obstore.auth.boto3 import Boto3CredentialProvider  # type: ignore[import-not-found,unused-ignore]

    try:
        return Boto3CredentialProvider(boto3.session.Session(profile_name=profile))
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"the profile {profile!r} gives no credentials: {error}",
            hint=f"aws sts get-caller-identity --profile {profile} says more",
        ) from None
