"""Describes the REST protocol of the development server as an OpenAPI 3.1 document.

GET /openapi.json returns it.
"""

from __future__ import annotations

from typing import Any

_ERROR_CODES = {
    "400": "The request is malformed.",
    "404": "There is no such model, version or path.",
    "408": "The request did not arrive in time.",
    "411": "The request has no length.",
    "413": "The body is too large.",
    "415": "The body has an encoding that is not read.",
    "431": "The headers are too large.",
    "500": "The answer holds NaN or infinity, or the server has a bug.",
    "503": "Too many requests wait, or the server is stopping.",
}


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answers(schema: str, *codes: str) -> dict[str, Any]:
    """Returns the responses: 200 with `schema`, and the error codes."""
    answers = {
        "200": {
            "description": "The answer.",
            "content": {"application/json": {"schema": _schema(schema)}},
        }
    }
    error = {"application/json": {"schema": _schema("Error")}}
    return {
        **answers,
        **{code: {"description": _ERROR_CODES[code], "content": error} for code in codes},
    }


def _parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
    }


def _paths(names: list[str]) -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/healthz": {
            "get": {
                "summary": "Whether the server takes requests",
                "responses": _answers("Health", "503"),
            }
        },
        "/monitoring/prometheus/metrics": {
            "get": {
                "summary": "Counts and times for Prometheus",
                "responses": {
                    "200": {
                        "description": "Metrics.",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
        "/openapi.json": {"get": {"summary": "This document", "responses": _answers("Any")}},
    }
    name = _parameter("name", "The model.", type="string", enum=names)
    version = _parameter("version", "Its version.", type="integer", minimum=1, maximum=10**18 - 1)
    label = _parameter("label", "The version's label.", type="string", pattern="^[A-Za-z0-9_.-]+$")
    ways = {"": [name], "/versions/{version}": [name, version], "/labels/{label}": [name, label]}
    for way, parameters in ways.items():
        model = "/v1/models/{name}" + way
        status, metadata = _answers("Status", "400", "404"), _answers("Metadata", "400", "404")
        paths[model] = {
            "parameters": parameters,
            "get": {"summary": "States of versions", "responses": status},
        }
        paths[f"{model}/metadata"] = {
            "parameters": parameters,
            "get": {"summary": "Signatures", "responses": metadata},
        }
        paths[f"{model}:predict"] = {
            "parameters": parameters,
            "post": {
                "summary": "Predictions; the body may be compressed (Content-Encoding: gzip)",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _schema("Request")}},
                },
                "responses": _answers("Predictions", *_ERROR_CODES),
            },
        }
        paths[f"{model}:explain"] = {
            "parameters": parameters,
            "post": {
                "summary": "What predictions depend on, and the nearest labeled images",
                "description": "Not a part of TF Serving's protocol. It takes up to 4 images.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": _schema("Request")}},
                },
                "responses": _answers("Explanations", *_ERROR_CODES),
            },
        }
    return paths


_OBJECT = {"type": "object"}
_BYTES = {
    "type": "object",
    "required": ["b64"],
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "additionalProperties": False,
}
_VALUES = {"anyOf": [_schema("Bytes"), {"type": ["string", "number", "array", "object"]}]}
_SIGNATURE = {"type": "string", "description": "Default: serving_default."}

_SCHEMAS: dict[str, Any] = {
    "Any": _OBJECT,
    "Bytes": _BYTES,
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Health": {"type": "object", "required": ["status"], "properties": {"status": {"const": "ok"}}},
    "Status": {
        "type": "object",
        "required": ["model_version_status"],
        "properties": {"model_version_status": {"type": "array", "items": _OBJECT}},
    },
    "Metadata": {
        "type": "object",
        "required": ["model_spec", "metadata"],
        "properties": {"model_spec": _OBJECT, "metadata": _OBJECT},
    },
    "Request": {
        "oneOf": [
            {
                "type": "object",
                "required": ["instances"],
                "properties": {
                    "instances": {"type": "array", "items": _VALUES},
                    "signature_name": _SIGNATURE,
                },
            },
            {
                "type": "object",
                "required": ["inputs"],
                "properties": {"inputs": _VALUES, "signature_name": _SIGNATURE},
            },
        ]
    },
    "Explanations": {
        "type": "object",
        "required": ["explanations"],
        "properties": {"explanations": {"type": "array", "items": _schema("Explanation")}},
    },
    "Explanation": {
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {"type": "integer", "description": "As of a prediction; 0: explained."},
            "version": {"type": "integer"},
            "label": {"type": "string", "description": "The most probable class."},
            "probability": {"type": "number"},
            "prepared": {
                "type": "string",
                "contentEncoding": "base64",
                "description": "PNG of what the network sees.",
            },
            "drops": {
                "type": "array",
                "description": "Rows from top to bottom: by how much the probability falls when a"
                " gray square covers a place.",
                "items": {"type": "array", "items": {"type": "number"}},
            },
            "neighbors": {
                "description": "Labeled images with similar embeddings; null: the export has none.",
                "type": ["array", "null"],
                "items": {
                    "type": "object",
                    "required": ["label", "key", "similarity", "thumbnail"],
                    "properties": {
                        "label": {"type": "string"},
                        "key": {"type": "string"},
                        "similarity": {"type": "number", "minimum": -1.001, "maximum": 1.001},
                        "thumbnail": {"type": "string", "contentEncoding": "base64"},
                    },
                },
            },
        },
    },
    "Predictions": {
        "oneOf": [
            {
                "type": "object",
                "required": ["predictions"],
                "properties": {"predictions": {"type": "array"}},
            },
            {"type": "object", "required": ["outputs"]},
        ]
    },
}


def document(names: list[str]) -> dict[str, Any]:
    """Returns the OpenAPI document of a server with the models `names`."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Development server with TF Serving's REST protocol", "version": "1"},
        "paths": _paths(names),
        "components": {"schemas": _SCHEMAS},
    }
