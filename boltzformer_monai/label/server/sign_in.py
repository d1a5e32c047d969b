"""Bearer tokens: API keys of a file, and where ``MONAI_LABEL_AUTH_ENABLE`` is set those of a sign-in server.

MONAI Label names no algorithm when it decodes a token, so PyJWT 2 refuses every one. This module replaces that one
function; roles, realm and the checks of the routes stay MONAI Label's. A key is a bearer token with a prefix; clients
that sign in with name and password (3D Slicer) send it as the password.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jwt
import requests
from fastapi import APIRouter, Depends, FastAPI
from fastapi.security import OAuth2PasswordRequestForm
from monailabel.config import settings
from monailabel.endpoints import login
from monailabel.endpoints.user import auth
from starlette.exceptions import HTTPException

from boltzformer_monai.label.api_keys import PREFIX, KeyFile
from boltzformer_monai.label.request_record import current_request

_log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512")
"""A realm publishes an RSA key; a token with another signature algorithm is forged."""


def use_sign_in(app: FastAPI, keys: KeyFile | None) -> APIRouter:
    """Check the token on every route, MONAI Label's included, where there are keys or a sign-in server.

    Returns:
        a route in front of MONAI Label's ``/auth/token``; none without keys.
    """
    realm, router = settings.MONAI_LABEL_AUTH_ENABLE, APIRouter(include_in_schema=False)
    if not realm and keys is None:
        return router

    def owner(token: Annotated[str, Depends(auth.oauth2_scheme)]) -> auth.User:
        if keys is not None and (token.startswith(PREFIX) or not realm):
            user = _owner_of_key(keys, token)
        else:
            user = current_user(token)
        _note_user(user)
        return user

    settings.MONAI_LABEL_AUTH_ENABLE = True  # the checks of roles ask for it
    app.dependency_overrides[auth.get_current_user] = owner
    if keys is not None:

        def token(form_data: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, Any]:
            if realm and not form_data.password.startswith(PREFIX):
                return dict(asyncio.run(login.access_token(form_data)))
            _note_user(_owner_of_key(keys, form_data.password))
            return {"access_token": form_data.password, "token_type": "bearer"}

        router.add_api_route("/auth/token", token, methods=["POST"])
    return router


def token_check(app: FastAPI) -> Callable[[str], object] | None:
    """What every route asks for the owner of a token, after :func:`use_sign_in`; None without sign-in."""
    return app.dependency_overrides.get(auth.get_current_user)


def _note_user(user: auth.User) -> None:
    if (record := current_request()) is not None:
        record.user = user.username


def _owner_of_key(keys: KeyFile, key: str) -> auth.User:
    if (found := keys.owner(key)) is None:
        _log.warning("a key was refused")
        raise _unauthorized("the key is not valid")
    roles = {
        "user": settings.MONAI_LABEL_AUTH_ROLE_USER,
        "annotator": settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        "reviewer": settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
        "admin": settings.MONAI_LABEL_AUTH_ROLE_ADMIN,
    }
    return auth.User(username=found.name, roles=[roles[role] for role in found.roles])


def require_role(role: str) -> Any:
    """The dependency of MONAI Label's own routes: the token's owner must have the role."""
    return Depends(auth.RBAC(role))


def check_role(user: auth.User, role: str) -> None:
    """Refuse what needs a role that the route itself does not ask for.

    Raises:
        HTTPException: 403, there is sign-in and the user lacks the role.
    """
    if settings.MONAI_LABEL_AUTH_ENABLE and role not in user.roles:
        raise HTTPException(403, f'Role "{role}" is required to perform this action')


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
