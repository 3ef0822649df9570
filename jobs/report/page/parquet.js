"use strict";
// Marks as a Parquet file: one row group, one uncompressed page of plain values for each column.
// The format: parquet.apache.org/docs/file-format (numbers below are those of its Thrift).

const INT32 = 1; // types of columns
const BYTE_ARRAY = 6;
const RLE = 3; // the encoding of the levels
const I32 = 5; // types of Thrift's compact protocol
const I64 = 6;
const BINARY = 8;
const LIST = 9;
const STRUCT = 12;
const utf8 = new TextEncoder();

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return [...bytes, value];
}

const int32 = (value) => [value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >> 24) & 255];

function append(bytes, more) { // `push(...more)` takes no long lists
  for (const byte of more) bytes.push(byte);
  return bytes;
}

/** A Thrift value; a list is [the type of its members, members], a struct its fields. */
function thrift(type, value) {
  if (type === I32 || type === I64) return varint(value * 2); // none is negative
  if (type === BINARY) {
    const text = utf8.encode(value);
    return append(varint(text.length), text);
  }
  if (type === STRUCT) return struct(value);
  const [of, members] = value;
  const head = members.length < 15 ? [(members.length << 4) | of] : [0xf0 | of, ...varint(members.length)];
  return members.reduce((bytes, member) => append(bytes, thrift(of, member)), head);
}

/** A Thrift struct of fields [number, type, value], in the order of their numbers. */
function struct(fields) {
  const bytes = [];
  let last = 0;
  for (const [number, type, value] of fields) {
    bytes.push(((number - last) << 4) | type);
    append(bytes, thrift(type, value));
    last = number;
  }
  return [...bytes, 0];
}

/** Which values are there, as runs of 1 (a value) and 0 (null). */
function levels(values) {
  const runs = [];
  for (let start = 0; start < values.length; ) {
    const there = values[start] !== null;
    let end = start;
    while (end < values.length && (values[end] !== null) === there) end++;
    append(runs, [...varint((end - start) * 2), Number(there)]);
    start = end;
  }
  return [...int32(runs.length), ...runs];
}

function page(type, values) {
  const data = levels(values);
  for (const value of values) {
    if (value === null) continue;
    if (type === INT32) append(data, int32(value));
    else {
      const text = utf8.encode(value);
      append(append(data, int32(text.length)), text);
    }
  }
  const counts = [[1, I32, values.length], [2, I32, 0], [3, I32, RLE], [4, I32, RLE]];
  const head = struct([[1, I32, 0], [2, I32, data.length], [3, I32, data.length], [5, STRUCT, counts]]);
  return append(head, data);
}

/** Rows of `PICK_COLUMNS` as the bytes of a Parquet file. */
function toParquet(rows) {
  const file = [...utf8.encode("PAR1")];
  const types = PICK_COLUMNS.map((name) => (name === "rating" ? INT32 : BYTE_ARRAY));
  const columns = PICK_COLUMNS.map((name, i) => {
    const offset = file.length;
    append(file, page(types[i], rows.map((row) => row[i])));
    const size = file.length - offset;
    return [[2, I64, offset], [3, STRUCT, [
      [1, I32, types[i]], [2, LIST, [I32, [0, RLE]]], [3, LIST, [BINARY, [name]]], [4, I32, 0],
      [5, I64, rows.length], [6, I64, size], [7, I64, size], [9, I64, offset],
    ]]];
  });
  const schema = [
    [[4, BINARY, "picks"], [5, I32, PICK_COLUMNS.length]],
    ...PICK_COLUMNS.map((name, i) => [
      [1, I32, types[i]], [3, I32, 1], [4, BINARY, name], ...(types[i] === BYTE_ARRAY ? [[6, I32, 0]] : []),
    ]),
  ];
  const group = [[1, LIST, [STRUCT, columns]], [2, I64, file.length - 4], [3, I64, rows.length]];
  const foot = struct([
    [1, I32, 1], [2, LIST, [STRUCT, schema]], [3, I64, rows.length], [4, LIST, [STRUCT, [group]]],
    [6, BINARY, "Retake report"],
  ]);
  append(append(file, foot), [...int32(foot.length), ...utf8.encode("PAR1")]);
  return new Uint8Array(file);
}
