#!/usr/bin/env -S npx ts-node
/**
 * An echo client (RFC 862): it connects to an echo server over TCP, sends a
 * message, reads until the whole of it has come back, and closes.
 *
 *     npx ts-node client.ts [host] [port] [message]
 *
 * It prints this, while server.ts runs in another terminal:
 *
 *     Connected to server: localhost on port 54321
 *     Sending some data...
 *     Response from server: Hello World!
 *     Connection closed.
 *
 * Left out on purpose: more than one message, and another try if the server
 * is not there yet.
 */
import { isIPv6, Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds without traffic, after which we give up
class ExpectedError extends Error {} // reported without its stack; any other error shows it
class UsageError extends ExpectedError {}

/** The client, step by step. Comments such as connect() name calls of Python's socket module. Throws if it fails. */
async function talk(host: string, port: number, message: Buffer): Promise<void> {
  const connection = await connect(host, port); // socket(), connect()
  console.log(`Connected to server: ${host} on port ${port}`);
  console.log('Sending some data...');
  connection.write(message); // sendall(), but in the background: if neither side read, both would block
  const { reply, error } = await receive(connection, message.length); // recv(), until EOF, and close()
  if (reply.length > 0 || message.length === 0) console.log(`Response from server: ${visible(reply.toString())}`);
  console.log('Connection closed.');
  throwUnlessEcho(reply, message, error);
}

/** socket(AF_INET, SOCK_STREAM), connect(). Rejects if one fails, for instance with ECONNREFUSED. */
function connect(host: string, port: number): Promise<Socket> {
  const failed = `connection to ${host} port ${port} failed`;
  return new Promise((resolve, reject) => {
    const connection = new Socket();
    connection.connect({ host, port, family: 4 }); // AF_INET: a name is looked up as IPv4
    giveUpIfSilent(connection, `nothing arrived from ${host} port ${port} for ${TIMEOUT} s`); // settimeout()
    connection.on('error', (error) => reject(systemError(failed, error))); // once connected, receive() returns it
    // If nothing listens, and the system picks this very port as our own, TCP connects the socket to itself.
    const toItself = () => connection.localPort === port && connection.localAddress === connection.remoteAddress;
    connection.on('connect', () => {
      if (!toItself()) return resolve(connection);
      connection.destroy(new ExpectedError(`${failed} (ECONNREFUSED): nothing listens, TCP connected it to itself`));
    });
  });
}

/** settimeout(): ends the connection with an error if nothing happens for TIMEOUT. A lookup has its own time limit. */
function giveUpIfSilent(connection: Socket, message: string): void {
  const progress = () => `${connection.readyState}, ${connection.bytesRead} bytes`;
  connection.on('connectionAttempt', () => connection.setTimeout(TIMEOUT * 1000));
  connection.on('timeout', () => {
    const atTimeout = progress(); // after Ctrl-Z, bytes may be waiting: setImmediate() lets Node read them first
    setImmediate(() => { if (progress() === atTimeout) connection.destroy(new ExpectedError(message)); });
  });
}

/**
 * recv(), until EOF, and close(): resolves to all bytes that arrived, and to the error if the connection broke. Once
 * all bytes are back, we send our FIN. A server then closes, too; if it doesn't, the timeout ends the wait.
 */
async function receive(connection: Socket, length: number): Promise<{ reply: Buffer; error: Error | undefined }> {
  const pieces: Buffer[] = [];
  let missing = length;
  let lost: Error | undefined;
  if (missing === 0) connection.end(); // shutdown(), after an empty message
  try {
    for await (const piece of connection) {
      pieces.push(piece);
      missing -= piece.length;
      if (missing < 0) break; // this is no echo, and may go on for ever
      if (missing === 0) connection.end(); // shutdown()
    } // close(): the loop closes the connection when it ends
  } catch (error) {
    if (error !== connection.errored) throw error; // not the network, but a mistake in this source
    lost = error as Error;
  }
  return { reply: Buffer.concat(pieces), error: lost };
}

/** Throws unless the reply is the message. If it is, how the connection ended doesn't matter. */
function throwUnlessEcho(reply: Buffer, message: Buffer, error: Error | undefined): void {
  if (reply.equals(message)) return;
  const { length } = message;
  if (reply.length === length) throw new ExpectedError('the reply differs from the message');
  if (reply.length > length) throw new ExpectedError(`server sent more than the ${length} bytes of the message`);
  if (error) throw systemError('connection lost', error);
  throw new ExpectedError(`server closed after ${reply.length} of ${length} bytes`);
}

/** Escapes text-reversing and control characters, except tab and newline, as \x1b or \u202e. */
function visible(text: string): string {
  return text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, (character) => {
    const code = character.charCodeAt(0).toString(16);
    return code.length > 2 ? `\\u${code}` : `\\x${code.padStart(2, '0')}`;
  });
}

const USAGE = `Usage: npx ts-node client.ts [host] [port] [message]
  host     address or name (looked up as IPv4) of the server (default: ${HOST})
  port     1 to 65535 (default: ${PORT})
  message  any text, sent as UTF-8 (default: ${MESSAGE})`;

/** The three arguments. Throws if one is wrong. --help only prints the usage. */
function parseArguments(args: string[]): { host: string; port: number; message: Buffer } | void {
  const end = args.indexOf('--'); // which is not an argument itself
  const words = end < 0 ? args : args.toSpliced(end, 1);
  const [host = HOST, port = String(PORT), message = MESSAGE, unexpected] = words;
  const option = words.slice(0, 2).find((word) => word.startsWith('-')); // a message may start with a dash
  if (option === '-h' || option === '--help') return console.log(USAGE);
  if (option !== undefined) throw new UsageError(`unknown option "${option}"`);
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  const looksWrong = /^\d*$|[:[\]]/.test(host) && !isIPv6(host); // such as '', 8080 and localhost:8080
  if (looksWrong) throw new UsageError(`"${host}" is neither a name nor an address`);
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
    throw new UsageError(`"${port}" is not a port from 1 to 65535`);
  if (message.includes('\ufffd')) throw new UsageError('the message is not UTF-8, or has a U+FFFD');
  return { host, port: Number(port), message: Buffer.from(message) };
}

/** The error of a system call in words, with its code; any other error as it is. */
function systemError(what: string, error: NodeJS.ErrnoException): Error {
  return error.syscall === undefined ? error : new ExpectedError(`${what} (${error.code})`);
}

/** Reports an error once stdout has taken what was printed before. Ends with status 1, or 2 for a usage error. */
function fail(error: Error): void {
  const isUsage = error instanceof UsageError;
  const report = error instanceof ExpectedError ? `client.ts: ${visible(error.message)}` : error.stack;
  process.stdout.write('', () => {
    process.stderr.write(isUsage ? `${report}\n${USAGE}\n` : `${report}\n`, () => process.exit(isUsage ? 2 : 1));
  });
}

process.on('uncaughtException', fail); // a usage error, or a mistake in the source
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => { // the conversation goes on
  if (code === 'EPIPE') return; // its reader has left, as head(1) does
  if (process.exitCode !== 1) console.error(`client.ts: cannot print (${code})`); // once
  process.exitCode = 1;
});
const options = parseArguments(process.argv.slice(2));
if (options) talk(options.host, options.port, options.message).catch(fail);
