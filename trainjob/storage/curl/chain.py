"""What botocore's configuration says of S3: environment, shared files, roles of machines.

Asked for what the settings leave open. botocore is loaded with the first question, since that takes
as long as a thousand small files take to arrive, and complete settings leave nothing open.
"""

from typing import Any


def credentials() -> Any:
    """Return botocore's credentials, which renew themselves; None if there are none."""
    return _session().get_credentials()


def region() -> str | None:
    """Return the region, if one is configured."""
    found = _session().get_config_variable("region")
    return str(found) if found else None


def endpoint() -> str | None:
    """Return the endpoint of S3, if one is configured."""
    from botocore.configprovider import ConfiguredEndpointProvider

    session = _session()
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    )
    found = provider.provide()
    return str(found) if found else None


def aws_endpoint(region: str) -> str:
    """Return the endpoint of S3 on AWS, in whatever part of it the region is."""
    from botocore.regions import EndpointResolver

    resolver = EndpointResolver(_session().get_component("data_loader").load_data("endpoints"))
    found = resolver.construct_endpoint("s3", region) or {}
    return f"https://{found.get('hostname', f's3.{region}.amazonaws.com')}"


def ca_bundle() -> str:
    """Return the file with the certificates to trust: the configured one, or the usual ones."""
    from botocore.httpsession import get_cert_path

    return str(_session().get_config_variable("ca_bundle") or get_cert_path(True))


def _session() -> Any:
    from botocore.session import Session

    return Session()
