"""Bearer tokens, where MONAI Label's sign-in is switched on (``MONAI_LABEL_AUTH_ENABLE``).

MONAI Label names no algorithm when it decodes a token, so PyJWT 2 refuses every one. This module replaces that one
function; roles, realm and the checks of the routes stay MONAI Label's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import jwt
import requests
from fastapi import Depends, FastAPI
from monailabel.config import settings
from monailabel.endpoints.user import auth
from starlette.exceptions import HTTPException

_log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512")
"""A realm publishes an RSA key; a token with another signature algorithm is forged."""


def use_sign_in(app: FastAPI) -> None:
    """Check tokens by :func:`current_user` on every route, MONAI Label's included."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        app.dependency_overrides[auth.get_current_user] = current_user


def require_role(role: str) -> Any:
    """The dependency of MONAI Label's own routes: the token's owner must have the role."""
    return Depends(auth.RBAC(role))


def current_user(token: Annotated[str, Depends(auth.oauth2_scheme)]) -> auth.User:
    """The owner of a valid token of the realm.

    Raises:
        HTTPException: 401 for any other token, 503 where the realm does not respond.
    """
    try:
        key = auth.get_public_key(settings.MONAI_LABEL_AUTH_REALM_URI)
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        _log.error("no public key from %s: %s", settings.MONAI_LABEL_AUTH_REALM_URI, error)
        raise HTTPException(503, "the sign-in server does not respond; try again later") from error
    try:
        # As in MONAI Label, a token for any client of the realm is accepted.
        claims = jwt.decode(token, key, algorithms=ALGORITHMS, options={"verify_aud": False, "require": ["exp"]})
    except jwt.ExpiredSignatureError as error:
        raise _unauthorized("the token has expired") from error
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        _log.warning("a token was refused: %s", error)
        raise _unauthorized("the token is not valid") from error
    name = claims.get(settings.MONAI_LABEL_AUTH_TOKEN_USERNAME) or claims.get("sub") or "unknown"
    return auth.User(
        username=str(name),
        email=_text(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_EMAIL)),
        name=_text(claims.get(settings.MONAI_LABEL_AUTH_TOKEN_NAME)),
        roles=_roles(claims),
    )


def _roles(claims: Mapping[str, Any]) -> list[str]:
    found: Any = claims
    for key in settings.MONAI_LABEL_AUTH_TOKEN_ROLES.split("#"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return [role for role in found if isinstance(role, str)] if isinstance(found, list) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _unauthorized(reason: str) -> HTTPException:
    return HTTPException(401, f"{reason}; sign in again", headers={"WWW-Authenticate": "Bearer"})
