// What real packages of Node do against a live server, each with its own defaults: `node checks.mjs URL PICTURE`
// prints one line of JSON a check, as checks.py does.

import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Ollama } from "ollama";
import { createOllama } from "ollama-ai-provider-v2";
import OpenAI from "openai";

const [url, file] = process.argv.slice(2);
const model = "thimble";
const question = "What colour is the picture?";
const data = readFileSync(file).toString("base64");
const uri = `data:image/png;base64,${data}`;
const schema = {
  type: "object",
  properties: { colour: { enum: ["red", "green"] }, count: { enum: [1, 2] } },
  required: ["colour", "count"],
};
const parameters = { type: "object", properties: { colour: { enum: ["red", "green"] } }, required: ["colour"] };

function assert(held, what) {
  if (!held) throw new Error(what ?? "it does not hold");
}
const red = (text) => assert(String(text).toLowerCase().includes("red"), `no red in ${JSON.stringify(text)}`);
function shaped(value) {
  const found = typeof value === "string" ? JSON.parse(value) : value;
  assert(["red", "green"].includes(found.colour) && [1, 2].includes(found.count), JSON.stringify(value));
}
async function refused(call, word) {
  let told;
  try {
    await call();
  } catch (error) {
    told = `${error.message} ${error.responseBody ?? ""}`;
  }
  assert(told?.includes(word) && !told.includes("object Object"), told ?? "it was not refused");
}

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const ollama = new Ollama({ host: url });
const hello = [{ role: "user", content: "Hello" }];
const parts = [{ type: "text", text: question }, { type: "image_url", image_url: { url: uri } }];
const asked = [{ role: "user", content: parts }];
const source = { type: "base64", media_type: "image/png", data };
const blocks = [{ role: "user", content: [{ type: "image", source }, { type: "text", text: question }] }];
const pictured = [{ role: "user", content: question, images: [data] }];
const functions = [{ type: "function", function: { name: "paint", description: "Paints.", parameters } }];

// the AI SDK's providers: its OpenAI one asks /v1/responses
const providers = {
  openai: createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" })(model),
  "openai chat": createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" }).chat(model),
  compatible: createOpenAICompatible({ name: "trifocal", baseURL: `${url}/v1` })(model),
  anthropic: createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" })(model),
  ollama: createOllama({ baseURL: `${url}/api` })(model),
};
const seen = [{ role: "user", content: [{ type: "text", text: question }, { type: "image", image: data }] }];
async function each(run, without = []) {
  for (const [name, chosen] of Object.entries(providers)) {
    if (without.includes(name)) continue;
    try {
      await run(chosen, name);
    } catch (error) {
      throw new Error(`${name}: ${error.message} ${error.responseBody ?? ""}`, { cause: error });
    }
  }
}
const written = Output?.object({ schema: jsonSchema({ ...schema, additionalProperties: false }) });
const tools = { paint: tool({ description: "Paints.", inputSchema: jsonSchema(parameters), execute: async () => "done" }) };

const checks = {
  openai: {
    text: async () => {
      const first = await openai.chat.completions.create({ model, messages: hello });
      const more = [...hello, first.choices[0].message, { role: "user", content: "And?" }];
      assert((await openai.chat.completions.create({ model, messages: more })).choices[0].message.content);
      assert((await openai.responses.create({ model, input: "Hello" })).output_text);
    },
    picture: async () => red((await openai.chat.completions.create({ model, messages: asked })).choices[0].message.content),
    stream: async () => {
      const stream = openai.chat.completions.stream({ model, messages: asked });
      red((await stream.finalChatCompletion()).choices[0].message.content);
      const input = [{ role: "user", content: [{ type: "input_image", image_url: uri, detail: "auto" }] }];
      assert((await openai.responses.stream({ model, input }).finalResponse()).output_text);
    },
    structured: async () => {
      const response_format = { type: "json_schema", json_schema: { name: "seen", schema, strict: true } };
      const answer = await openai.chat.completions.create({ model, messages: asked, response_format });
      shaped(answer.choices[0].message.content);
    },
    tools: async () => {
      await openai.chat.completions.create({ model, messages: asked, tools: functions });
      const forced = { model, messages: asked, tools: functions, tool_choice: "required" };
      const { message } = (await openai.chat.completions.create(forced)).choices[0];
      assert(message.tool_calls[0].function.name === "paint");
      const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "done" };
      await openai.chat.completions.create({ model, messages: [...asked, message, result], tools: functions });
    },
    errors: () => refused(() => openai.chat.completions.create({ model: "other", messages: hello }), "no such model"),
  },
  "@anthropic-ai/sdk": {
    text: async () => {
      const first = await anthropic.messages.create({ model, max_tokens: 4096, messages: hello });
      const more = [...hello, { role: "assistant", content: first.content }, { role: "user", content: "And?" }];
      assert((await anthropic.messages.create({ model, max_tokens: 4096, messages: more })).content[0].text);
    },
    picture: async () => red((await anthropic.messages.create({ model, max_tokens: 4096, messages: blocks })).content[0].text),
    stream: async () => {
      const stream = anthropic.messages.stream({ model, max_tokens: 4096, messages: blocks });
      red((await stream.finalMessage()).content[0].text);
    },
    structured: async () => {
      const output_config = { format: { type: "json_schema", schema } };
      const answer = await anthropic.messages.create({ model, max_tokens: 4096, messages: blocks, output_config });
      shaped(answer.content[0].text);
    },
    tools: async () => {
      const offered = { model, max_tokens: 4096, messages: blocks, tools: [{ name: "paint", input_schema: parameters }] };
      await anthropic.messages.create(offered);
      const answer = await anthropic.messages.stream({ ...offered, tool_choice: { type: "any" } }).finalMessage();
      assert(answer.stop_reason === "tool_use" && answer.content[0].name === "paint", JSON.stringify(answer));
    },
    errors: () =>
      refused(() => anthropic.messages.create({ model: "other", max_tokens: 9, messages: hello }), "not_found_error"),
  },
  ollama: {
    text: async () => {
      const first = await ollama.chat({ model, messages: hello });
      const more = [...hello, first.message, { role: "user", content: "And?" }];
      assert((await ollama.chat({ model, messages: more, keep_alive: "10m" })).message.content);
      assert((await ollama.list()).models[0].digest && (await ollama.ps()).models.length === 1);
      assert((await ollama.show({ model })).capabilities.includes("vision"));
    },
    picture: async () => red((await ollama.chat({ model, messages: pictured })).message.content),
    stream: async () => {
      let text = "";
      for await (const part of await ollama.chat({ model, messages: pictured, stream: true })) text += part.message.content;
      red(text);
    },
    structured: async () => shaped((await ollama.chat({ model, messages: pictured, format: schema })).message.content),
    tools: async () => assert((await ollama.chat({ model, messages: pictured, tools: functions })).message.content),
    errors: () => refused(() => ollama.chat({ model: "other", messages: hello }), "no such model"),
  },
  ai: {
    text: () => each(async (chosen) => assert((await generateText({ model: chosen, prompt: "Hello" })).text)),
    picture: () => each(async (chosen) => red((await generateText({ model: chosen, messages: seen })).text)),
    stream: () =>
      each(async (chosen) => {
        let text = "";
        for await (const part of streamText({ model: chosen, messages: seen }).textStream) text += part;
        red(text);
      }),
    structured: () =>
      each(
        async (chosen) => {
          const answer = await generateText({ model: chosen, messages: seen, output: written });
          shaped(answer.output);
        },
        ["compatible"], // sends json_object, without the schema
      ),
    tools: async () => {
      await each(async (chosen) => assert((await generateText({ model: chosen, messages: seen, tools })).text));
      await each(
        async (chosen) => {
          const answer = await generateText({ model: chosen, messages: seen, tools, toolChoice: "required" });
          assert(answer.toolCalls[0].toolName === "paint");
          assert(answer.toolResults[0].output === "done");
        },
      );
    },
    errors: async () => {
      const other = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" })("other");
      await refused(() => generateText({ model: other, prompt: "Hi", maxRetries: 0 }), "no such model");
    },
  },
};

function version(name) {
  const folder = join(dirname(fileURLToPath(import.meta.url)), "node_modules", name, "package.json");
  return JSON.parse(readFileSync(folder, "utf-8")).version;
}

let failed = 0;
for (const [client, all] of Object.entries(checks)) {
  for (const [name, run] of Object.entries(all)) {
    let problem = "";
    try {
      await run();
    } catch (error) {
      problem = `${error.name}: ${error.message}`.slice(0, 500);
      failed += 1;
    }
    console.log(JSON.stringify({ client: `${client} (Node)`, version: version(client), check: name, problem }));
  }
}
process.exit(Math.min(failed, 99));
