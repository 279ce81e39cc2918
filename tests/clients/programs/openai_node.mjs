// The npm package openai, unchanged: whole answers, streams, a stream that is left, errors.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.SERVER_URL}/v1`, apiKey: "key", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Say hello to my cat." }];

const whole = await client.chat.completions.create({ model, messages, max_tokens: 20 });
assert.ok(whole.choices[0].message.content);

let text = "", usage = null;
const stream = await client.chat.completions.create({
  model, messages, max_tokens: 20, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  usage = chunk.usage ?? usage;
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.completion_tokens, whole.usage.completion_tokens);

const long = await client.chat.completions.create({ model, messages, max_tokens: 2000, stream: true });
for await (const chunk of long) {
  if (chunk.choices[0].delta.content) { long.controller.abort(); break; }
}

const schema = { type: "object", properties: { name: { enum: ["cat", "dog"] } }, required: ["name"],
  additionalProperties: false };
const shaped = await client.chat.completions.create({ model, messages, max_tokens: 40,
  response_format: { type: "json_schema", json_schema: { name: "animal", schema, strict: true } } });
assert.ok(["cat", "dog"].includes(JSON.parse(shaped.choices[0].message.content).name));

const response = await client.responses.create({ model, input: "Hello", max_output_tokens: 8 });
assert.ok(response.output_text);

await assert.rejects(
  client.chat.completions.create({ model, messages, logit_bias: { 5: 100 } }),
  error => error instanceof OpenAI.BadRequestError && error.param === "logit_bias");
await assert.rejects(
  client.chat.completions.create({ model: "gpt-4", messages }), OpenAI.NotFoundError);
console.log("openai (npm): ok");
