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
 * Left out on purpose: more than one message; another try if the server is
 * not there yet; the right answer if the client itself is suspended for
 * longer than the timeout.
 */
import { isIPv6, Socket } from 'node:net';

const HOST = 'localhost';
const PORT = 54321;
const MESSAGE = 'Hello World!';
const TIMEOUT = 10; // seconds that the server may be silent

class Failure extends Error {} // an error that we expect: it is reported in one line, any other with its stack
class UsageError extends Failure {}

/** The client, step by step. Each comment names a call of Python's socket module. Throws if the echo is not right. */
async function talk(host: string, port: number, message: Buffer): Promise<void> {
  const connection = await connect(host, port); // socket(), connect()
  console.log(`Connected to server: ${host} on port ${port}`);
  console.log('Sending some data...');
  connection.write(message); // sendall(); we don't wait for its end, since the echo of a long message begins before
  const { reply, error } = await receive(connection, message.length); // recv(), until EOF, and close()
  if (reply.length > 0 || message.length === 0) console.log(`Response from server: ${visible(reply.toString())}`);
  console.log('Connection closed.');
  check(reply, message, error);
}

/** socket(AF_INET, SOCK_STREAM), settimeout(), connect(). Rejects if one fails, for instance with ECONNREFUSED. */
function connect(host: string, port: number): Promise<Socket> {
  const server = `${host} port ${port}`;
  return new Promise((resolve, reject) => {
    const connection = new Socket({ allowHalfOpen: true }); // after the server's FIN, we can still send
    connection.connect({ host, port, family: 4 }); // AF_INET: a name is looked up as IPv4
    connection.on('connectionAttempt', () => connection.setTimeout(TIMEOUT * 1000)); // after the lookup
    connection.on('timeout', () => connection.destroy(new Failure(`nothing came from ${server} for ${TIMEOUT} s`)));
    connection.on('error', (error) => reject(failure(`connection to ${server} failed`, error)));
    connection.on('connect', () => {
      // If nothing listens, and the system picks this very port as our own, TCP connects the socket to itself.
      const toItself = connection.localPort === port && connection.localAddress === connection.remoteAddress;
      if (!toItself) return resolve(connection);
      const refused = `connection to ${server} failed (ECONNREFUSED)`;
      connection.destroy(new Failure(`${refused}: nothing listens, TCP connected it to itself`));
    });
  });
}

/**
 * recv(), until EOF, and close(): resolves to all bytes that arrived, and to the error if the connection broke. When
 * as many bytes are back as were sent, it sends our FIN, and the server closes too. More bytes are not awaited.
 */
async function receive(connection: Socket, length: number): Promise<{ reply: Buffer; error?: Error }> {
  const pieces: Buffer[] = [];
  let missing = length;
  if (missing === 0) connection.end();
  try {
    for await (const piece of connection) {
      pieces.push(piece);
      missing -= piece.length;
      if (missing <= 0) connection.end(); // shutdown()
      if (missing < 0) break;
    } // close(): the loop closes the connection when it ends
  } catch (error) {
    if (error !== connection.errored) throw error; // a mistake in the source
    return { reply: Buffer.concat(pieces), error: error as Error };
  }
  return { reply: Buffer.concat(pieces) };
}

/** Throws if the reply is not the message. If it is, the server may do with the connection what it likes. */
function check(reply: Buffer, message: Buffer, error?: Error): void {
  if (reply.equals(message)) return;
  if (error) throw failure('connection lost', error);
  const { length } = message;
  if (reply.length < length) throw new Failure(`server closed after ${reply.length} of ${length} bytes`);
  if (reply.length > length) throw new Failure(`server sent more than the ${length} bytes of the message`);
  throw new Failure('the reply differs from the message');
}

/** Escapes what controls a terminal: C0 except tab and newline, DEL, C1, and what reverses the order of characters. */
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

/** What the command line says; undefined at --help, which it prints. Throws if an argument is wrong. */
function parseArguments(args: string[]): { host: string; port: number; message: Buffer } | undefined {
  const end = args.indexOf('--'); // no options after it, nor after the port: a message may start with a dash
  const option = args.slice(0, end < 0 ? 2 : end).find((arg) => arg.startsWith('-'));
  const [host = HOST, port = String(PORT), message = MESSAGE, unexpected] = args.filter((_, index) => index !== end);
  if (option === '-h' || option === '--help') return void console.log(USAGE);
  if (option !== undefined) throw new UsageError(`unknown option "${option}"`);
  if (unexpected !== undefined) throw new UsageError(`unexpected argument "${unexpected}"`);
  if (/^\d*$|[:[\]]/.test(host) && !isIPv6(host)) throw new UsageError(`"${host}" is neither a name nor an address`);
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65535)
    throw new UsageError(`"${port}" is not a port from 1 to 65535`);
  if (message.includes('\ufffd')) throw new UsageError('the message is not valid UTF-8'); // Node has replaced its bytes
  return { host, port: Number(port), message: Buffer.from(message) };
}

/** The error of a system call in words, with its code; any other error as it is. */
function failure(what: string, error: NodeJS.ErrnoException): Error {
  return error.syscall === undefined ? error : new Failure(`${what} (${error.code})`);
}

/** Reports an error once stdout has taken what was printed before. Ends with status 1; at a usage error, with 2. */
function fail(error: Error): void {
  process.stdout.write('', () => {
    console.error(error instanceof Failure ? `client.ts: ${visible(error.message)}` : error);
    if (error instanceof UsageError) console.error(USAGE);
    process.exit(error instanceof UsageError ? 2 : 1);
  });
}

process.on('uncaughtException', fail);
process.stdout.on('error', ({ code }: NodeJS.ErrnoException) => { // the conversation goes on
  if (code !== 'EPIPE' && !process.exitCode) console.error(`client.ts: cannot print (${code})`); // a full disk, once
  if (code !== 'EPIPE') process.exitCode = 1; // EPIPE is no failure: the reader has left, as head(1) does
});
const options = parseArguments(process.argv.slice(2));
if (options) talk(options.host, options.port, options.message).catch(fail);
