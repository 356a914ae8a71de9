"""How an S3 store is reached, where the environment alone does not say it."""

from schemas.strict import StrictModel


class StoreOptions(StrictModel):
    """What is null comes from the usual AWS_* variables and the files of the AWS tools."""

    endpoint: str | None = None
    """URL of an S3-compatible server; null: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, then Amazon."""
    region: str | None = None
    """Null: AWS_REGION, AWS_DEFAULT_REGION, the profile's, then us-east-1."""
    profile: str | None = None
    """Of the AWS tools' configuration; credentials in the environment then do not count."""
    anonymous: bool = False
    """Sign nothing: for reading what everybody may read."""
