"""Writes what vLLM itself makes of requests of other APIs: conversations as chat requests.

    pip install vllm==0.32.0        # the CPU build will do
    python convert.py CHATML_FOLDER

Only its conversion runs, no model. `chat` is what a chat request would have to be for the same prompt; whether a template wants system
messages first is found by vLLM's own probe of the folder's template.
"""

import json
import os
import sys

from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.utils import construct_input_messages, construct_tool_dicts, should_continue_final_message

HERE = os.path.dirname(os.path.abspath(__file__))
PNG = "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAIAAAD9b0jDAAAAAElFTkSuQmCC"
HEADER = "x-anthropic-billing-header: cc_version=2.1; cch=00000;"
SCHEMA = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}

USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Zürich", "days": 2, "f": 1.5, "x": [True, None, "<&>"]}}
MESSAGES = {
    "text": {"messages": [{"role": "user", "content": " Hi \n"}]},
    "turns": {
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}, {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": ""}, {"type": "text", "text": "d "}]}],
    },
    "system_blocks": {
        "system": [{"type": "text", "text": HEADER}, {"type": "text", "text": "One.\n", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "Two."}],
        "messages": [{"role": "user", "content": "a"}],
    },
    "system_header": {"system": HEADER + "\nThe rest.", "messages": [{"role": "user", "content": "a"}]},
    "system_header_only": {"system": HEADER, "messages": [{"role": "user", "content": "a"}]},
    "system_inline": {
        "system": "One.",
        "messages": [{"role": "user", "content": "a"}, {"role": "system", "content": [{"type": "text", "text": "Two."}]}, {"role": "user", "content": "b"}, {"role": "system", "content": "Three."}, {"role": "system", "content": HEADER}],
    },
    "tools": {
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [{"name": "get_weather", "description": "Of <a> city", "input_schema": SCHEMA, "cache_control": {"type": "ephemeral"}}, {"name": "noop", "input_schema": {"type": "object", "properties": {}}, "strict": True}],
    },
    "agent": {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm. ", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}, {"type": "thinking", "thinking": "So.", "signature": "s"}, {"type": "text", "text": "I look."}, USE, USE | {"id": "toolu_2", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "21"}, {"type": "text", "text": "C"}]}, {"type": "tool_result", "tool_use_id": "toolu_2", "content": "x", "is_error": True}]},
            {"role": "assistant", "content": [USE]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1"}, {"type": "text", "text": "And?"}]},
        ],
        "tools": [{"name": "get_weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    },
    "own_result": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "x"}, {"type": "tool_result", "tool_use_id": "t"}]}, {"role": "user", "content": "b"}]},
    "empty_turns": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": []}, {"role": "user", "content": []}, {"role": "user", "content": "b"}]},
    "images": {
        "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, {"type": "text", "text": "What?"}]}, {"role": "assistant", "content": [USE]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "image", "source": {"type": "base64", "data": PNG}}, {"type": "text", "text": "21"}]}]}],
    },
    "effort": {"messages": [{"role": "user", "content": "a"}], "output_config": {"effort": "low"}},
    "adaptive": {"messages": [{"role": "user", "content": "a"}], "thinking": {"type": "adaptive"}, "chat_template_kwargs": {"enable_thinking": False}},
    "disabled": {"messages": [{"role": "user", "content": "a"}], "thinking": {"type": "disabled"}},
}

CALL = {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Z\\u00fcrich", "days": 2}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "21"}
TOOL = {"type": "function", "name": "get_weather", "description": "Of <a> city", "parameters": SCHEMA, "strict": True}
RESPONSES = {
    "text": {"input": " Hi \n"},
    "instructions": {"input": "Hi", "instructions": "Be brief."},
    "turns": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}, {"type": "output_text", "text": "lost"}]}, {"role": "user", "content": "d"}],
        "instructions": "Be brief.",
    },
    "assistants": {"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c"}]}, {"role": "developer", "content": "d"}, {"role": "user", "content": "e"}]},
    "agent": {
        "input": [
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            CALL,
            CALL | {"call_id": "call_2", "arguments": "no JSON"},
            OUTPUT,
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "x"}, {"type": "input_text", "text": "y"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Short."}]},
            CALL | {"call_id": "call_3"},
            OUTPUT | {"call_id": "call_3"},
        ],
        "tools": [TOOL, {"type": "web_search_preview"}],
    },
    "custom": {"input": [{"role": "user", "content": "a"}, {"type": "custom_tool_call", "call_id": "c", "name": "shell", "input": "ls -l é"}, {"type": "custom_tool_call_output", "call_id": "c", "output": "x"}]},
    "hosted_only": {"input": "a", "tools": [{"type": "web_search_preview"}]},
    "two_reasonings": {"input": [{"role": "user", "content": "a"}, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "1"}]}, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "2"}]}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]},
    "continued": {"input": [{"role": "user", "content": "a"}, {"type": "message", "role": "assistant", "status": "incomplete", "content": [{"type": "output_text", "text": "It is"}]}]},
    "image": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": "data:image/png;base64," + PNG}]}]},
    "effort": {"input": "a", "reasoning": {"effort": "low"}},
    "no_effort": {"input": "a", "reasoning": {"effort": "none"}},
    "namespace": {"input": [{"role": "user", "content": "a"}, CALL | {"namespace": "home"}, OUTPUT]},
}


def plain(messages):
    return json.loads(json.dumps(messages, default=list))


def main():
    template = open(os.path.join(sys.argv[1], "chat_template.jinja"), encoding="utf-8").read()
    merge = AnthropicServingMessages._detect_merge_inline_system(template)
    out = {"messages": [], "responses": []}
    for name, body in MESSAGES.items():
        body = {"model": "m", "max_tokens": 9, **body}
        converted = AnthropicServingMessages.to_chat_completion_request(
            AnthropicMessagesRequest(**json.loads(json.dumps(body))), merge_inline_system=merge, disabled_thinking_effort="none"
        )
        chat = {"model": "m", "messages": plain(converted.messages)}
        if converted.tools is not None:
            chat["tools"] = [tool.model_dump() for tool in converted.tools]
        for key in ["reasoning_effort", "chat_template_kwargs"]:
            if getattr(converted, key) is not None:
                chat[key] = getattr(converted, key)
        out["messages"].append({"name": name, "request": body, "chat": chat})
    for name, body in RESPONSES.items():
        body = {"model": "m", **body}
        request = ResponsesRequest(**json.loads(json.dumps(body)))
        messages = construct_input_messages(request_instructions=request.instructions, request_input=request.input)
        chat = {"model": "m", "messages": plain(messages)}
        tools = construct_tool_dicts(request.tools, request.tool_choice)
        if tools is not None:
            chat["tools"] = tools
        if request.reasoning and request.reasoning.effort:
            chat["reasoning_effort"] = request.reasoning.effort
        if should_continue_final_message(request.input):
            chat |= {"add_generation_prompt": False, "continue_final_message": True}
        out["responses"].append({"name": name, "request": body, "chat": chat})
    json.dump(out, open(os.path.join(HERE, "converted.json"), "w", encoding="utf-8"), ensure_ascii=False, indent=None)


main()
